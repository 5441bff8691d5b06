"""Values into memory that compiled graphs read: weights of the host, beside what the device computes, and others."""

import mindspore as ms
from mindspore import Parameter
from mindspore.common.initializer import initializer
from mindspore.nn.utils import no_init_parameters

from ospnext_ms.kernels.device import on_ascend


def places_for(parameters):
    """Parameters of the same names, shapes and dtypes, with memory of their own on the device, whose values are
    whatever was there."""
    with no_init_parameters():
        places = [Parameter(initializer("zeros", parameter.shape, parameter.dtype), name=parameter.name,
                            requires_grad=False) for parameter in parameters]
    for place in places:
        # Not as what it is made from, which MindSpore would take to the host.
        place.set_data(_room(place.shape, place.dtype))
    return places


def _room(shape, dtype):
    # MindSpore makes no tensors of hifloat8.
    made = ms.uint8 if dtype == ms.hifloat8 else dtype
    room = ms.mint.empty(shape, dtype=made, device="Ascend" if on_ascend() else "CPU")
    return room if made == dtype else room.view(dtype)


class Place:
    """Memory of the device into which values are copied in turn, one tensor for each shape and dtype.

    A compiled graph keeps what it was given last until it is called again (MindSpore 2.9). Graphs that are given the
    tensor of one place keep that one only, where tensors of their own would stay for each graph.
    """

    def __init__(self):
        self._tensors = {}

    def put(self, values):
        """The place's tensor of that shape and dtype, which has these values until the next."""
        kind = values.shape, values.dtype
        if kind not in self._tensors:
            self._tensors[kind] = _room(*kind)
        self._tensors[kind].copy_(values)
        return self._tensors[kind]


class Arrival:
    """Tensors on their way to the device, those of one cell at a time: `start` them, then write them `into` parameters.

    On Ascend they come into buffers, on a stream of its own, while the device goes on computing with the parameters;
    one set of buffers for each set of shapes and dtypes. What has been launched before `into` reads the old values,
    what comes after it the new ones, in compiled graphs too. On CPU host and device are one, and nothing is buffered.
    """

    def __init__(self):
        self._route = _Streamed() if on_ascend() else _AtOnce()

    def start(self, tensors):
        """Begins with the copies of tensors of the host, which stay there."""
        self._route.start(tensors)

    def into(self, parameters):
        """Gives parameters the values of what was started last, in its order."""
        # Not set_data, see kernels.assign. Ascend has an aclnn kernel for this, for Assign it has not.
        for parameter, tensor in zip(parameters, self._route.arrived(), strict=True):
            parameter.copy_(tensor)
        self._route.written()


class _AtOnce:
    def start(self, tensors):
        self._tensors = tensors

    def arrived(self):
        return self._tensors

    def written(self):
        pass


class _Streamed:
    def __init__(self):
        self._stream = ms.runtime.Stream()
        self._buffers_of = {}
        self._free = None

    def start(self, tensors):
        kinds = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if kinds not in self._buffers_of:
            self._buffers_of[kinds] = [_room(shape, dtype) for shape, dtype in kinds]
        self._buffers = self._buffers_of[kinds]
        if self._free is not None:
            self._stream.wait_event(self._free)
        with ms.runtime.StreamCtx(self._stream):
            for buffer, tensor in zip(self._buffers, tensors, strict=True):
                # Of all ways to copy, the one that leaves a tensor of the host without memory on the device.
                buffer.copy_(tensor)
        self._here = self._stream.record_event()

    def arrived(self):
        ms.runtime.current_stream().wait_event(self._here)
        return self._buffers

    def written(self):
        self._free = ms.runtime.current_stream().record_event()
