"""The transformer with one block's weights at a time where it computes; those of all blocks stay on the host.

B batch, N tokens, C width, L text tokens, as in models.dit.
"""

from mindspore import nn

from ospnext_ms.kernels.arrival import Arrival, Place, places_for


class BeforeBlocks(nn.Cell):
    """x, t, text as the network's -> hidden states [B, N, C], e [B, C], e0 [B, 6, C], text [B, L, C]."""

    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, x, t, text):
        grid = self.net.grid_of(x, t, text)
        return self.net.embed_patches(x, grid), *self.net.embed_time(t), self.net.embed_text(text)


class OrderedBlock(nn.Cell):
    """A block after the switch to its order: hidden states in the order `before` -> those after it, in `order`."""

    def __init__(self, net, block):
        super().__init__(auto_prefix=False)
        self.sequence = net.sequence
        self.block = block

    def construct(self, x_BNC, e0_B6C, text_BLC, cos_1N1D, sin_1N1D, grid, before, order):
        if order != before:
            x_BNC = self.sequence.switch(x_BNC, grid, order)
        return self.block(x_BNC, e0_B6C, text_BLC, cos_1N1D, sin_1N1D, grid, order)


class AfterBlocks(nn.Cell):
    """Hidden states in the last order, e [B, C] and the grid -> velocity as the network's."""

    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, x_BNC, e_BC, grid):
        return self.net.project(x_BNC, e_BC, grid)


class Added(nn.Cell):
    """What the blocks add to the hidden states, see dit_steps.ComputedStep: those before them and after them."""

    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, before_BNC, after_BNC, grid):
        return after_BNC - self.net.in_last_order(before_BNC, grid)


class BlockByBlock:
    """An OSPNextDiT whose blocks take turns: those of a kind are one Cell, which is given the weights of each.

    While a block is computed, the weights of the next one arrive (see kernels.arrival), those of the first one at the
    end. So there is room on the device for two blocks; for two more where some blocks have other parameters than the
    others (adapters or 8 bits in a part of them). The operations are those of the network.

    Args:
        net: OSPNextDiT with its weights, none of which has been computed with. It has no blocks afterwards, and can be
            used for all else.
        compiled: function from a Cell to what is called in its place, see runtime.Runtime.compile.

    Inputs and output as those of the network.
    """

    def __init__(self, net, compiled):
        self._net = net
        self._before, self._after, self._added = (compiled(part(net)) for part in (BeforeBlocks, AfterBlocks, Added))
        blocks, net.blocks = list(net.blocks), nn.CellList()
        self._weights = [[parameter for _, parameter in block.parameters_and_names()] for block in blocks]
        self._arrival = Arrival()
        self._hidden, self._before_blocks = Place(), Place()
        self._grid, self._rotations = None, {}
        self._places, self._block_of_kind, self._kinds = {}, {}, []
        for i, block in enumerate(blocks):
            kind = (net.config.block_patterns[i] == "full", i in net.config.quantised_blocks, _table(block))
            self._kinds.append(kind)
            if kind not in self._block_of_kind:
                if kind[-1] not in self._places:
                    self._places[kind[-1]] = places_for(self._weights[i])
                _move(block, self._places[kind[-1]])
                self._block_of_kind[kind] = compiled(OrderedBlock(net, block))
        self._arrival.start(self._weights[0])

    def __call__(self, x, t, text):
        grid = self._net.grid_of(x, t, text)
        x_BNC, e_BC, e0_B6C, text_BLC = self._embedded(x, t, text)
        return self._after(self._through_blocks(x_BNC, e0_B6C, text_BLC, grid), e_BC, grid)

    def computed(self, x, t, text):
        """The same and what the blocks add, see dit_steps.ComputedStep."""
        grid = self._net.grid_of(x, t, text)
        x_BNC, e_BC, e0_B6C, text_BLC = self._embedded(x, t, text)
        before_BNC = self._before_blocks.put(x_BNC)
        after_BNC = self._through_blocks(x_BNC, e0_B6C, text_BLC, grid)
        return self._after(after_BNC, e_BC, grid), self._added(before_BNC, after_BNC, grid)

    def _embedded(self, x, t, text):
        """What BeforeBlocks gives, the hidden states in their place."""
        x_BNC, *others = self._before(x, t, text)
        return self._hidden.put(x_BNC), *others

    def _through_blocks(self, x_BNC, e0_B6C, text_BLC, grid):
        """Hidden states in their place -> those after the blocks, there too."""
        net, before = self._net, "token"
        if grid != self._grid:
            # Inputs of the graphs: in each of them they would be constants of its own.
            self._rotations = {order: net.sequence.rope(grid, order, net.config.head_dim)
                               for order in net.distinct_orders}
            self._grid = grid
        for i, (kind, order) in enumerate(zip(self._kinds, net.orders, strict=True)):
            self._arrival.into(self._places[kind[-1]])
            x_BNC = self._hidden.put(
                self._block_of_kind[kind](x_BNC, e0_B6C, text_BLC, *self._rotations[order], grid, before, order))
            # After the block is launched: the copies may hold up this process, but not the device.
            self._arrival.start(self._weights[(i + 1) % len(self._kinds)])
            before = order
        return x_BNC


def _table(block):
    """What decides whether weights fit another block's place."""
    return tuple((name, parameter.shape, parameter.dtype) for name, parameter in block.parameters_and_names())


def _move(block, places):
    """Puts other parameters in the place of a block's, in their order."""
    place_of = {id(parameter): place for (_, parameter), place in
                zip(block.parameters_and_names(), places, strict=True)}
    for _, cell in block.cells_and_names():
        for name, parameter in list(cell._params.items()):
            setattr(cell, name, place_of[id(parameter)])
