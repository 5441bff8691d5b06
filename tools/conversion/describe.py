"""The config.json of a network's folder, as those who load it expect one: diffusers, transformers, or the original."""

from ospnext_ms.models.config import VAE_BLOCKS, VAE_TIME_LEVELS, VAE_WIDTHS

# Of every released transformer of Wan2.1, where nothing says the number of heads: no weight shows it.
_HEAD_WIDTH = 128
_TEXT_LEN = 512
# The authors' names of what makes a transformer sparse.
_SPARSE = {"skiparse": "skiparse_model_type", "sparse_ratio": "sparse_ratio", "num_full_blocks": "num_full_blocks"}


def config_json(kind, naming, sizes, known):
    """(content of config.json or None, what to say about it or None).

    Args:
        sizes: of the network, as sizes.infer_sizes gives them. known: what its own config.json or a run's YAML says
            besides (heads, text length, sparse layout).
    """
    if kind == "dit":
        return _transformer(naming, sizes, known)
    if naming == "original":
        return None, None
    if kind == "vae":
        return {"_class_name": "AutoencoderKLWan", "base_dim": sizes["dim"], "z_dim": sizes["z_dim"],
                "dim_mult": list(VAE_WIDTHS), "num_res_blocks": VAE_BLOCKS["encoder"], "attn_scales": [],
                "temperal_downsample": list(VAE_TIME_LEVELS), "dropout": 0.0}, None
    return {"architectures": ["UMT5EncoderModel"], "model_type": "umt5", "vocab_size": sizes["vocab_size"],
            "d_model": sizes["dim"], "d_kv": sizes["dim"] // sizes["num_heads"], "d_ff": sizes["ffn_dim"],
            "num_heads": sizes["num_heads"], "num_layers": sizes["num_layers"],
            "relative_attention_num_buckets": sizes["num_buckets"], "relative_attention_max_distance": 128,
            "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6, "is_encoder_decoder": False,
            "use_cache": False, "tie_word_embeddings": False}, None


def _transformer(naming, sizes, known):
    heads = known.get("num_heads") or known.get("num_attention_heads")
    if heads is None and sizes["dim"] % _HEAD_WIDTH:
        return None, f"no config.json: nothing says how many heads a width of {sizes['dim']} has, give --config"
    said = None if heads else f"config.json says heads of width {_HEAD_WIDTH}, as Wan2.1's; --config rules over it"
    heads = heads or sizes["dim"] // _HEAD_WIDTH
    sparse = {theirs: known[ours] for ours, theirs in _SPARSE.items() if known.get("skiparse", "full") != "full"}
    if naming == "diffusers":
        if sparse:
            said = "diffusers' transformer attends fully: the sparse pattern is not part of its config.json"
        return {"_class_name": "WanTransformer3DModel", "num_attention_heads": heads,
                "attention_head_dim": sizes["dim"] // heads, "num_layers": sizes["num_layers"],
                "ffn_dim": sizes["ffn_dim"], "freq_dim": sizes["freq_dim"], "text_dim": sizes["text_dim"],
                "in_channels": sizes["in_channels"], "out_channels": sizes["out_channels"],
                "patch_size": list(sizes["patch_size"]), "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads",
                "eps": 1e-6, "rope_max_seq_len": 1024}, said
    return {"_class_name": "OSPNextModel" if sparse else "WanModel", "model_type": "t2v", "dim": sizes["dim"],
            "ffn_dim": sizes["ffn_dim"], "num_heads": heads, "num_layers": sizes["num_layers"],
            "freq_dim": sizes["freq_dim"], "text_dim": sizes["text_dim"], "text_len": known.get("text_len", _TEXT_LEN),
            "in_dim": sizes["in_channels"], "out_dim": sizes["out_channels"], "patch_size": list(sizes["patch_size"]),
            "eps": 1e-6, **sparse}, said
