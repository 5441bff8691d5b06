"""A text-to-video model so small that a clip takes less than a second, and the configuration that runs it."""

from tests.support.text_to_video import model_section, text_encoder_of

DIT = {"dim": 32, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "freq_dim": 16, "text_dim": 16, "text_len": 12,
       "skiparse": "full"}
TEXT_ENCODER = text_encoder_of(DIT)


def settings(model, output="nowhere"):
    """A GenerateConfig as nested dicts: two Euler steps to a clip of 5 frames of 32x48; weights lie in `model`."""
    return {
        "run_mode": "generate",
        "context": {"mode": "pynative"},
        "model": model_section(model, DIT, TEXT_ENCODER),
        "sampling": {"sampler": "euler", "steps": 2, "shift": 3.0, "guidance": 3.0, "negative_prompt": "grey",
                     "seed": 7},
        "video": {"height": 32, "width": 48, "frames": 5, "fps": 8},
        "prompts": {"prompt": "a 3 moving left"},
        "output_dir": str(output),
    }
