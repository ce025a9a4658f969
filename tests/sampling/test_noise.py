"""Noise is a function of seed, prompt id, sample and position, and looks like noise along each of them."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.sampling.noise import _mix, streams, uniforms


def test_mix_is_splitmix64():
    # The first outputs of splitmix64 seeded with 0 (Vigna's reference code): mix(γ), mix(2γ).
    gamma = 0x9E3779B97F4A7C15
    counters = np.array([gamma, 2 * gamma % 2**64], dtype=np.uint64)
    assert [hex(int(value)) for value in _mix(counters)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


def test_a_number_depends_on_its_names_alone():
    names, samples = ["a", "b", "a", "c"], [0, 0, 1, 5]
    whole = uniforms(streams(7, names, samples), 6)
    for row, (name, sample) in enumerate(zip(names, samples, strict=True)):
        assert np.array_equal(uniforms(streams(7, [name], [sample]), 3)[0], whole[row, :3])
    assert len(np.unique(whole)) == whole.size
    assert not np.isin(uniforms(streams(8, names, samples), 6), whole).any()


def test_seed_and_name_do_not_run_together():
    assert streams(1, ["2"], [0]) != streams(12, [""], [0])


@pytest.mark.parametrize("along", ["seed", "prompt", "sample", "position"])
def test_uniform_and_uncorrelated_along(along):
    count = 20_000
    if along == "seed":
        u = np.array([uniforms(streams(seed, ["p"], [0]), 1)[0, 0] for seed in range(count)])
    elif along == "prompt":
        u = uniforms(streams(0, [str(index) for index in range(count)], [0] * count), 1)[:, 0]
    elif along == "sample":
        u = uniforms(streams(0, ["p"] * count, list(range(count))), 1)[:, 0]
    else:
        u = uniforms(streams(0, ["p"], [0]), count)[0]
    assert u.min() >= 0
    assert u.max() < 1
    # Twenty bins of 1,000: chi-square with 19 degrees of freedom is below 43.8 with probability 0.999.
    observed = np.histogram(u, bins=20, range=(0, 1))[0]
    assert ((observed - 1000) ** 2 / 1000).sum() < 43.8
    # The correlation of neighbours has deviation 1/√20,000 = 0.007.
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.028


def test_samples_of_one_prompt_are_not_shifted_copies():
    rows = uniforms(streams(0, ["p"] * 8, list(range(8))), 64)
    for shift in range(1, 8):
        for row in range(7):
            assert not np.isin(rows[row, shift:], rows[row + 1]).any()
