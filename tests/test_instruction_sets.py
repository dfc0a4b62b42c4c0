"""The same integers and the right defaults on every processor up to this one: engines are kept to fewer units.

Each limit has a process of its own, since engines read theirs once. ``ONEDNN_MAX_CPU_ISA`` holds for OpenVINO and for
PyTorch's products, ``ATEN_CPU_CAPABILITY`` for PyTorch's own kernels.
"""

import json
import os
import subprocess
import sys

import pytest

from i2ilib.runtime import this_machine
from i2ilib.runtime.machine import within

LIMITS = ["AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_AMX"]

PROBE = """
import json
import torch
from i2ilib.deploy import EXACT, fastest_exact, make_runner, openvino, status
from i2ilib.models import Generator
from i2ilib.quant import integer, quantise
from i2ilib.runtime import this_machine
from i2ilib.train.gan import settle_precision
from i2ilib.train.matting import MattingConfig

torch.manual_seed(0)
net, x = Generator(width=8, levels=4, out_channels=1), torch.randn(3, 3, 16, 16)
for _ in range(3):
    net(x)
net = net.eval()
quantised = quantise(net, [x]).on_device()
want, made = quantised.integer(x), {}
assert torch.equal(quantised.fake(x), want) and want.unique().numel() > 30
for backend in EXACT:
    made[backend] = status(backend).reason
    if status(backend):
        with make_runner(backend, net, x, quantised=quantised) as runner:
            made[backend] = torch.equal(runner.run(x), want)
print(json.dumps({
    "units": this_machine().units,
    "limit": this_machine().limit,
    "default": fastest_exact()[0],
    "openvino": openvino.exact_int8(),
    "int8_pays": integer.int8_pays(),
    "precision": settle_precision(MattingConfig(), torch.device("cpu"), None).precision,
    "bf16": bool(status("torch-bf16")),
    "made": made,
}))
"""


@pytest.fixture(scope="module", params=LIMITS)
def told(request):
    """What a process finds that is limited to an instruction set, of those that this processor has whole."""
    limit = request.param
    if not within(limit) <= set(this_machine().units):
        pytest.skip(f"this processor does not reach {limit}")
    aten = "avx2" if limit.startswith("AVX2") else "avx512"
    limits = {"ONEDNN_MAX_CPU_ISA": limit, "ATEN_CPU_CAPABILITY": aten, "OMP_NUM_THREADS": "1"}
    environment = os.environ | limits
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_exact_backend_gives_the_integers(told):
    assert told["made"]["exact"] is True and told["made"]["openvino-int8-float"] is True
    assert told["made"]["openvino-int8"] is True or "this processor" in told["made"]["openvino-int8"]


def test_the_default_is_exact(told):
    assert told["default"] == ("openvino-int8" if told["openvino"] else "openvino-int8-float")


def test_what_is_used_is_what_the_limit_leaves(told):
    units = set(told["units"])
    vnni = bool(units & {"avx512_vnni", "avx_vnni", "amx_int8"})
    assert vnni or not (told["int8_pays"] or told["openvino"])
    assert (told["int8_pays"] and told["openvino"]) or "amx_int8" not in units
    assert told["bf16"] == (told["precision"] == "bf16") == bool(units & {"avx512_bf16", "amx_bf16", "bf16"})
    assert units <= within(told["limit"])
