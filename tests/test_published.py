"""The printed tables agree with themselves and with what their authors say of them."""

import pytest

from i2ilib import I2IError
from i2ilib.deploy import published


def test_table_2_and_the_ratios_of_the_text():
    rows, stated = published.TABLE_2, published.TABLE_2.attrs["stated"]
    cpu, gpu, fpga = (rows.loc[f"U-Net {name}"] for name in ("CPU", "GPU", "FPGA"))
    assert fpga.fps / gpu.fps == pytest.approx(stated["throughput_fpga_to_gpu"], abs=0.01)
    assert fpga.latency_ms / gpu.latency_ms == pytest.approx(stated["latency_fpga_to_gpu"], abs=0.5)
    assert gpu.energy_j / fpga.energy_j == pytest.approx(stated["energy_gpu_to_fpga"], abs=0.5)
    assert cpu.energy_j / fpga.energy_j == pytest.approx(stated["energy_cpu_to_fpga"], abs=0.5)
    assert (1e3 / rows.ii_ms / rows.fps).tolist() == pytest.approx([1, 1, 1], abs=0.02)
    assert "Table 2" in rows.attrs["source"]


def test_thesis_speedups_follow_from_its_times():
    rows = published.THESIS_SPEED
    base = rows.network.map(rows.seconds)  # the model that is not optimised has its network's name
    printed = rows.speedup.dropna()
    assert len(printed) == 6
    assert (base / rows.seconds)[printed.index].tolist() == pytest.approx(printed.tolist(), abs=0.02)
    assert published.THESIS_SIZE.value.tolist() == [64.3, printed.max()]


def test_thesis_quality_is_whole():
    rows = published.THESIS_QUALITY
    assert rows.index.tolist() == published.THESIS_SPEED.index.tolist()
    assert not rows.isna().any().any()
    assert rows.loc["SRUNet-INT8", ["lpips", "psnr_db", "vmaf_mean"]].tolist() == [0.3068, 21.3320, 47.18]
    assert ((rows.ssim < 1) & (rows.ms_ssim < rows.ssim) & (rows.vmaf_harmonic_mean < rows.vmaf_mean)).all()


@pytest.mark.parametrize("name", published.TABLES)
def test_every_table_names_its_source_and_columns(name):
    rows = published.table(name)
    assert {"source", "about", "columns", "notes"} <= set(rows.attrs)
    columns = {rows.index.name, *rows.columns} - {c for c in rows.columns if c.endswith("_sd")}
    assert columns <= set(rows.attrs["columns"])


def test_unknown_tables():
    with pytest.raises(I2IError, match="table: expected table_2 or"):
        published.table("table_3")
    with pytest.raises(AttributeError, match="TABLE_3"):
        _ = published.TABLE_3
