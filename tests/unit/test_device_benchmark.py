"""The benchmark of one device, on the CPU, where everything but the kernels' names is the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from constellation.commands.benchmarks import device as of_device
from constellation.commands.benchmarks.device import simulate_films, task_of
from constellation.commands.benchmarks.device_time import GROUPS, Interval, busy, group_of, shares
from constellation.commands.benchmarks.throughput_ceiling import operations_per_event
from constellation.errors import InputError
from constellation.training.options import TrainingOptions


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "matrix_products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix_products"),
        ("aten::mkldnn_linear", "matrix_products"),
        ("aten::mm", "matrix_products"),
        ("void at::native::indexSelectLargeIndex<float, long, unsigned int, 2, 2, -2, true>", "lookups"),
        ("aten::embedding_bag", "lookups"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(...)>", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>", "elementwise"),
        ("triton_poi_fused_native_dropout_0", "elementwise"),
    ],
)
def test_kernels_are_grouped_by_name(name: str, group: str) -> None:
    assert group_of(name) == group


def test_shares_add_up_and_no_moment_counts_twice() -> None:
    intervals = [
        Interval("flash", 10, 20),
        Interval("aten::mm", 30, 60),
        Interval("memcpy", 50, 80),  # beside the product on another stream: 20 of it count
        Interval("gelu", 55, 58),  # hidden altogether
    ]
    found = shares(busy(intervals), 100.0)
    assert found == pytest.approx(
        {
            "attention": 0.1,
            "matrix_products": 0.3,
            "lookups": 0.0,
            "copies": 0.2,
            "elementwise": 0.0,
            "waiting": 0.4,
        }
    )
    assert shares(busy([Interval("gelu", 0, 30)]), 20.0)["elementwise"] == 1.0
    assert shares({}, 20.0)["waiting"] == 1.0


def test_the_films_are_like_films() -> None:
    events = simulate_films(num_journeys=2000, seed=1)
    lengths = np.diff(events.offsets)
    assert lengths.min() >= 18 and lengths.max() <= 2000
    assert 85 < np.median(lengths) < 110
    assert (events.time_N[events.offsets[:-1]] == 0).all() and (np.diff(events.time_N) <= 1).all()
    counts = np.bincount(events.item_N, minlength=3417)[1:]
    assert counts[:100].mean() > 5 * counts[-1000:].mean()
    assert (simulate_films(num_journeys=2000, seed=1).item_N == events.item_N).all()


def test_one_row_per_width() -> None:
    training = TrainingOptions(accelerator="cpu", products="float32", store_on_device=True, prefetch=True)
    rows = of_device.benchmark_device(training, widths=(16, 32), num_journeys=40, batch=8, warmup_steps=1, num_steps=2)
    assert [row["width"] for row in rows] == [16, 32]
    events = simulate_films(num_journeys=40, seed=0)
    for row in rows:
        assert sum(row[f"share_{group}"] for group in GROUPS) == pytest.approx(1)
        assert row["share_matrix_products"] > 0.05 and row["share_elementwise"] > 0.01
        assert row["events_per_second"] > 0 and row["peak_memory_gib"] > 0 and row["device"] == "cpu"
        task = task_of(row["width"], "", batch=8, seed=0, steps=(1, 2))
        operations = operations_per_event(events, task)
        assert row["model_mflop_per_event"] == pytest.approx(operations / 1e6)
        used = row["events_per_second"] * operations / (row["peak_tflops"] * 1e12)
        assert row["model_flop_utilisation"] == pytest.approx(used) and 0 < used < 1
    metrics = of_device.metrics_of(rows)
    assert metrics["device/32/events_per_second"] == rows[1]["events_per_second"]
    assert "device/16/share_waiting" in metrics and "device/16/device" not in metrics


def test_the_table_names_device_and_groups(capsys: pytest.CaptureFixture[str]) -> None:
    figures = ("events_per_second", "step_ms", "model_mflop_per_event", "model_flop_utilisation", "peak_memory_gib")
    row = {"width": 64, "layers": 2, "device": "cpu", "precision": "32-true", "peak_tflops": 0.1}
    row |= dict.fromkeys((*figures, *(f"share_{group}" for group in GROUPS)), 0.25)
    of_device.print_rows([row])
    head, names, cells = capsys.readouterr().out.splitlines()
    assert head.startswith("cpu, 32-true") and "matrix products" in names and "25.0%" in cells
    assert len(names) == len(cells)


def test_what_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="finds no CUDA device"):
        of_device.benchmark_device(TrainingOptions(accelerator="gpu"))
    with pytest.raises(InputError, match="widths must be multiples of 8"):
        task_of(12, "", batch=8, seed=0, steps=(1, 2))
    with pytest.raises(InputError, match="num_steps"):
        of_device.benchmark_device(TrainingOptions(accelerator="cpu"), num_steps=0)
