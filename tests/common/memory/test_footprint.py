from common.memory.footprint import Footprint, Term, plain_model


def test_peak_is_the_largest_phase() -> None:
    footprint = Footprint.of(
        [
            Term("baseline", 100, "measured"),
            Term("rows", 40, "analytic", ("load",)),
            Term("factors", 30, "analytic", ("fit", "write")),
            Term("solver", 25, "replayed", ("fit",)),
            Term("nothing", 0, "analytic", ("write",)),
        ]
    )
    assert footprint.phases() == {"load": 140, "fit": 155, "write": 130}
    assert (footprint.peak_phase, footprint.peak_bytes) == ("fit", 155)
    assert [term.name for term in footprint.at_peak()] == ["baseline", "factors", "solver"]


def test_a_footprint_of_constant_terms_has_one_phase() -> None:
    assert Footprint.of([Term("baseline", 7, "measured")]).phases() == {"*": 7}


def test_plain_model_of_the_classic_cnn() -> None:
    """784 input values of 32 bytes are 25,088 bytes; 10,218 float32 parameters are 40,872."""
    assert plain_model(parameters=0, parameter_bytes=4, samples=1, values_per_sample=784, value_bytes=32) == 25_088
    assert plain_model(parameters=10_218, parameter_bytes=4, samples=0, values_per_sample=0, value_bytes=4) == 40_872
