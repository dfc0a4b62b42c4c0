"""A stand-in for NVIDIA's ``tensorrt``: the part of its interface that engines need, computed by ONNX Runtime.

Device addresses are addresses of the CPU's memory. It is as strict as TensorRT where a mistake would pass unseen on a
lenient stand-in: a weakly typed network, an unset address, a shape outside the profile or a null stream all fail.
"""

import ctypes
import enum
import json

import numpy as np
import onnx
import onnxruntime

__version__ = "11.4.1"
MAGIC = b"stand-in plan\n"


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity
    Severity = Severity

    def __init__(self):
        pass


class DataType(enum.Enum):
    FLOAT, HALF, INT8 = range(3)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class BuilderFlag(enum.IntEnum):
    TF32 = 7


class LayerType(enum.Enum):
    CONVOLUTION, DECONVOLUTION, QUANTIZE, DEQUANTIZE, IDENTITY = range(5)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 0  # 11.x: accepted, and nothing else is possible


DRIVER = True  # False: as without one
KIND = {
    "Conv": LayerType.CONVOLUTION,
    "ConvTranspose": LayerType.DECONVOLUTION,
    "QuantizeLinear": LayerType.QUANTIZE,
    "DequantizeLinear": LayerType.DEQUANTIZE,
}
TYPES = {onnx.TensorProto.FLOAT: DataType.FLOAT, onnx.TensorProto.FLOAT16: DataType.HALF}


class IHostMemory(bytes):
    @property
    def nbytes(self):
        return len(self)


class ITensor:
    def __init__(self, name, shape=()):
        self.name, self.shape = name, tuple(shape)


class ILayer:
    def __init__(self, node, constants):
        self.name, self.type = node.name, KIND.get(node.op_type, LayerType.IDENTITY)
        names = list(node.input)
        if self.type in (LayerType.CONVOLUTION, LayerType.DECONVOLUTION):
            names = [name for name in names if name not in constants]  # these are the layer's own weights
        self._in, self._out = [ITensor(x) for x in names], [ITensor(x) for x in node.output]
        self.num_inputs, self.num_outputs = len(self._in), len(self._out)

    def get_input(self, i):
        return self._in[i]

    def get_output(self, i):
        return self._out[i]


class INetworkDefinition:
    def __init__(self, typed):
        self._typed, self._model, self._layers, self._inputs = typed, None, [], []

    num_layers = property(lambda self: len(self._layers))
    num_inputs = property(lambda self: len(self._inputs))

    def get_layer(self, i):
        return self._layers[i]

    def get_input(self, i):
        return self._inputs[i]


class ErrorCode(enum.Enum):
    MODEL_DESERIALIZE_FAILED = 3


class ParserError:
    def __init__(self, words):
        self._words = words

    def desc(self):
        return self._words

    def code(self):
        return ErrorCode.MODEL_DESERIALIZE_FAILED

    def node_name(self):
        return ""

    def node_operator(self):
        return ""


class OnnxParser:
    def __init__(self, network, logger):
        self._network, self._log, self._errors = network, logger, []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, i):
        return self._errors[i]

    def parse_from_file(self, path):
        try:
            model = onnx.load(path)
            onnx.checker.check_model(model)
        except Exception as error:
            self._errors.append(ParserError(f"Failed to parse: {type(error).__name__}"))
            return False
        if any(node.op_type == "Tanh" for node in model.graph.node):
            self._log.log(Severity.WARNING, "a warning that keeps no engine from being built")
        network, constants = self._network, {tensor.name for tensor in model.graph.initializer}
        network._model = model
        network._layers = [ILayer(node, constants) for node in model.graph.node]
        network._inputs = [ITensor(x.name, _shape(x)) for x in model.graph.input]
        return True


class IOptimizationProfile:
    def __init__(self):
        self._shapes = {}

    def set_shape(self, input, min, opt, max):
        self._shapes[input] = [list(min), list(opt), list(max)]


class IBuilderConfig:
    def __init__(self):
        self._flags, self._profiles = {BuilderFlag.TF32}, []

    def clear_flag(self, flag):
        self._flags.discard(flag)

    def add_optimization_profile(self, profile):
        self._profiles.append(profile)
        return len(self._profiles) - 1


class Builder:
    def __init__(self, logger):
        if not DRIVER:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._log = logger

    def create_network(self, flags=0):
        if __version__.startswith("10."):
            return INetworkDefinition(bool(flags >> NetworkDefinitionCreationFlag.STRONGLY_TYPED & 1))
        return INetworkDefinition(True)

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        wrong = "weakly typed" if not network._typed else "TF32 left on" if config._flags else ""
        if any(node.op_type == "Det" for node in network._model.graph.node):
            wrong = "no implementation for Det"
        if wrong:
            self._log.log(Severity.ERROR, wrong)
            return None
        head = json.dumps(config._profiles[0]._shapes).encode()
        return IHostMemory(MAGIC + head + b"\n" + network._model.SerializeToString())


class Runtime:
    def __init__(self, logger):
        self._log = logger

    def deserialize_cuda_engine(self, serialized_engine):
        if not serialized_engine.startswith(MAGIC):
            self._log.log(Severity.ERROR, "the plan's header is not one of this version")
            return None
        head, model = serialized_engine[len(MAGIC) :].split(b"\n", 1)
        return ICudaEngine(json.loads(head), model)


class ICudaEngine:
    device_memory_size_v2 = 4096

    def __init__(self, profile, data):
        options = onnxruntime.SessionOptions()  # every operator as written, none fused
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._profile, self._session = profile, onnxruntime.InferenceSession(data, options)
        graph = onnx.load_from_string(data).graph
        self._tensors = {x.name: (TensorIOMode.INPUT, x) for x in graph.input}
        self._tensors |= {x.name: (TensorIOMode.OUTPUT, x) for x in graph.output}

    num_io_tensors = property(lambda self: len(self._tensors))

    def get_tensor_name(self, i):
        return list(self._tensors)[i]

    def get_tensor_mode(self, name):
        return self._tensors[name][0]

    def get_tensor_dtype(self, name):
        return TYPES[self._tensors[name][1].type.tensor_type.elem_type]

    def get_tensor_shape(self, name):
        return _shape(self._tensors[name][1])

    def get_tensor_profile_shape(self, name, profile_index):
        return self._profile[name]

    def create_execution_context(self):
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine):
        self._engine, self._shape, self._at = engine, {}, {}

    def set_input_shape(self, name, shape):
        least, _, most = self._engine._profile[name]
        if not all(a <= x <= b for a, x, b in zip(least, shape, most, strict=True)):
            return False
        self._shape[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        (batch, *_), *_ = self._shape.values()
        return tuple(batch if size == -1 else size for size in self._engine.get_tensor_shape(name))

    def set_tensor_address(self, name, memory):
        self._at[name] = int(memory)
        return True

    def execute_async_v3(self, stream_handle):
        modes = {name: mode for name, (mode, _) in self._engine._tensors.items()}
        if not stream_handle or set(self._at) != set(modes):
            return False
        inputs = {
            name: self._memory(name, self._shape[name]) for name, mode in modes.items() if mode is TensorIOMode.INPUT
        }
        names = [name for name, mode in modes.items() if mode is TensorIOMode.OUTPUT]
        for name, value in zip(names, self._engine._session.run(names, inputs), strict=True):
            self._memory(name, value.shape)[...] = value
        return True

    def _memory(self, name, shape):
        floats = ctypes.cast(self._at[name], ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(floats, shape)


def _shape(tensor):
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.type.tensor_type.shape.dim)
