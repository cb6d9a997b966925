"""The table of a Gaussian source."""

from __future__ import annotations

from benchmarks import source


def test_few_bits_are_near_the_bound_of_scalar_codes_and_their_own_entropy(capsys):
    assert source.main(["--count", "20000", "--seed", "3"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 6
    for name, error, entropy, written, any_code, scalar, above in rows:
        assert 0 < float(error) < 0.2
        assert float(entropy) <= float(written) < 1.02 * float(entropy)
        assert float(any_code) < float(scalar) < float(written) + 0.02
        assert float(above) < (0.1 if "least error" in name else 0.3)
