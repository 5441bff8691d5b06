"""Seconds of a step and their growth; against measured ones: tests/tools/experiments/test_seconds_on_paper.py."""

import re
from dataclasses import replace

import pytest

from ospnext_ms.__main__ import main
from ospnext_ms.planning.devices import DEVICES, device_of
from ospnext_ms.planning.seconds import forward_seconds, growth, step_seconds
from ospnext_ms.planning.workload import read_workload
from tests.support.paths import ROOT

GENERATE_14B = str(ROOT / "yaml_configs" / "generate" / "14b.yaml")
TRAIN_14B = str(ROOT / "yaml_configs" / "train" / "14b.yaml")
SIZE_720P = (720, 1280, 81)


def test_a_step_is_more_than_its_forward_and_grows_slowly():
    work = read_workload(TRAIN_14B, (), 8, SIZE_720P)
    device = DEVICES["910B"]
    parts, forward = step_seconds(work, device), forward_seconds(work, device)
    assert sum(parts.values()) > 4 * sum(forward.values()) * work.batch * work.batches
    assert set(parts) == {"linears", "attention", "elementwise", "exchanges", "weights", "gradients", "update"}
    rows = [row for row in growth(work, device) if (row.skiparse, row.ulysses, row.shard) == (4, 2, 8)]
    assert [row.devices for row in rows] == [8, 64, 256, 1024]
    assert [row.videos for row in rows] == [1, 8, 32, 128]
    assert [row.between_hosts for row in rows] == [(), ("gradients",), ("gradients",), ("gradients",)]
    seconds = [row.step for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[-1] < 1.5 * seconds[0]


def test_weights_from_the_host_take_their_time():
    """Once a call; a faster link makes it less, and what is computed stays the same."""
    whole, turns = (read_workload(GENERATE_14B, [f"context.offload={offload}"], 1, SIZE_720P)
                    for offload in ("false", "true"))
    device = device_of("910B", ["host=20", "link_share=0.5"])
    forward = forward_seconds(turns, device)
    assert forward.pop("host link") == pytest.approx(40 * 2 * 351.4e6 / 10e9, rel=0.01)
    assert forward == forward_seconds(whole, device)
    steps = step_seconds(turns, device)
    assert steps.pop("host link") == pytest.approx(100 * 40 * 2 * 351.4e6 / 10e9, rel=0.01)
    assert steps == step_seconds(whole, device)


def test_what_crosses_hosts_is_slower():
    """Weights over 64 devices go over the links between hosts; over 8 they stay inside, as do a video's exchanges."""
    device = DEVICES["910B"]
    rows = {(row.skiparse, row.ulysses, row.shard): row
            for row in growth(read_workload(TRAIN_14B, (), 8, SIZE_720P), device) if row.devices == 64}
    own, spread, apart = rows[4, 2, 8], rows[4, 2, 64], rows[1, 1, 8]
    assert spread.between_hosts == ("weights", "gradients")
    assert spread.step > own.step + 5 * device.across / device.inside
    assert spread.forward > own.forward
    assert apart.videos == 64
    assert apart.forward > 6 * own.forward


def test_rates_can_be_changed():
    assert device_of("950PR", ["memory=3200"]).memory == 3200
    assert "across" not in device_of("950PR", ["across=100"]).estimated
    for text, problem in (("speed=1", "unknown key"), ("memory=fast", "must be KEY=NUMBER"), ("memory", "must be KEY")):
        with pytest.raises(ValueError, match=problem):
            device_of("950PR", [text])
    with pytest.raises(ValueError, match="--device is 'B200'; valid: H100, H200, 910B, 950PR"):
        device_of("B200")


def test_a_device_without_8_bits():
    work = read_workload(GENERATE_14B, ("parallel_config={}",), None, SIZE_720P)
    with pytest.raises(ValueError, match="no 8-bit floating point"):
        forward_seconds(replace(work, dit=replace(work.dit, quant="hif8")), DEVICES["910B"])


def test_what_is_printed(capsys):
    assert main(["plan", "--config", TRAIN_14B, "--device", "910B"]) == 0
    shown = capsys.readouterr().out
    assert "on paper, 910B (" in shown
    assert "estimated: linear_share, attention_share, link_share, host)" in shown
    assert re.search(r"1,024 +128 +4 x 2 +8 .* attention +gradients$", shown, re.M)
    assert re.search(r"1,024 +128 +4 x 2 +1,024 .* weights +weights, gradients$", shown, re.M)
