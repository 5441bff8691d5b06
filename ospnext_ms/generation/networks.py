"""The networks of a GenerateConfig, each loaded when it is first asked for."""

import time

from ospnext_ms.build import build_dit
from ospnext_ms.generation.coders import FrameDecoder, TextEncoder
from ospnext_ms.generation.team import SpreadTiles, Team
from ospnext_ms.models.block_by_block import BlockByBlock
from ospnext_ms.models.dit_steps import ComputedStep, ReusedStep
from ospnext_ms.quant.recipe import describe
from ospnext_ms.runtime import release_memory


class Networks:
    """Text encoder, transformer and VAE, for one list of jobs or, in a process that stays, for many.

    What decides the weights is read here: `model`, `parallel_config` and the adapters of the configuration. Prompts,
    sampling and size may differ from list to list; every size is a graph of its own where networks are compiled.

    Args:
        config: GenerateConfig. runtime: runtime.Runtime. team: generation.team.Team, None for one process.
        keeps_text_encoder: whether it stays loaded; else its memory is free again when a list's texts are encoded.
        compiles_decoder: whether the VAE is compiled where the run is, which takes as long as decoding some frames.

    Attributes: timings, {"loading_" + name: seconds}.
    """

    def __init__(self, config, runtime, team=None, *, keeps_text_encoder=False, compiles_decoder=True):
        self.config, self.runtime, self.team = config, runtime, team or Team()
        self.timings = {}
        self._keeps_text_encoder = keeps_text_encoder
        self._compiles_decoder = compiles_decoder
        self._made = {}

    @property
    def text_encoder(self):
        """TextEncoder of one text a call."""
        model = self.config.model
        return self._once("text_encoder", lambda: TextEncoder(model.text_encoder, model.dit.text_len, self.runtime,
                                                              batch=1))

    def texts_are_encoded(self):
        """Frees the text encoder, where it is not kept."""
        if not self._keeps_text_encoder:
            self._made.pop("text_encoder", None)
            release_memory()

    @property
    def velocity(self):
        """The transformer, compiled where the run is."""
        net, by_block = self._transformer
        return self._once("velocity", lambda: by_block or self.runtime.compile(net), is_timed=False)

    @property
    def computed_step(self):
        """See models.dit_steps.ComputedStep."""
        net, by_block = self._transformer
        return self._once("computed_step",
                          lambda: by_block.computed if by_block else self.runtime.compile(ComputedStep(net)),
                          is_timed=False)

    @property
    def reused_step(self):
        """See models.dit_steps.ReusedStep."""
        return self._once("reused_step", lambda: self.runtime.compile(ReusedStep(self._transformer[0])), is_timed=False)

    @property
    def decoder(self):
        """FrameDecoder."""
        return self._once("vae", lambda: FrameDecoder(self.config.model.vae,
                                                      self.runtime.compiled and self._compiles_decoder,
                                                      SpreadTiles(self.team.mesh.video_group)))

    @property
    def _transformer(self):
        """(network, BlockByBlock of it; None where its blocks are on the device)."""
        return self._once("dit", self._build_transformer)

    def _build_transformer(self):
        config = self.config
        net = build_dit(config.model.dit, self.runtime, self.team.mesh, adapters=config.used_adapters,
                        switch_dtype=config.parallel_config.switch_dtype)
        if (quantised := describe(config.model.dit, self.runtime)) and self.team.is_leader:
            print(quantised, flush=True)
        return net, BlockByBlock(net, self.runtime.compile) if config.context.offload else None

    def _once(self, name, make, is_timed=True):
        if name not in self._made:
            began = time.perf_counter()
            self._made[name] = make()
            if is_timed:
                self.timings[f"loading_{name}"] = time.perf_counter() - began
        return self._made[name]
