"""Architectures: the Fourier layer against complex FFTs, shapes, options, and whether they can learn at all."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.learners.models import MODELS, build_model, check_model, describe_models
from forebay.learners.models.fno import SpectralConvolution, fourier_basis
from forebay.learners.surrogate import IOSpec, TensorSpec
from forebay.pipeline.errors import StudyError


def grid_io(grid=(16, 16), inputs=1, outputs=1, parameters=(), times=()):
    dims = ("y", "x")[-len(grid) :] if len(grid) < 3 else ("z", "y", "x")
    return IOSpec(
        inputs=tuple(TensorSpec(f"a{i}", dims, grid) for i in range(inputs)),
        outputs=tuple(TensorSpec(f"u{i}", dims, grid) for i in range(outputs)),
        parameters=parameters,
        times=times,
        spacing=tuple(1 / n for n in grid),
    )


def mesh_io():
    return IOSpec(
        inputs=(TensorSpec("a", ("cell",), (7,)),),
        outputs=(TensorSpec("u", ("node",), (11,)),),
        parameters=("kappa",),
        structured=False,
    )


def reference_convolution(values, weight, modes, padding):
    """Zero-pad, rfft2 with the first axis halved, multiply the kept modes, irfft2, crop."""
    _, height, width, channels = values.shape
    size = (height + padding[0], width + padding[1])
    spectrum = torch.fft.rfft2(values, s=(size[1], size[0]), dim=(2, 1), norm="forward")
    complex_weight = torch.complex(weight[..., :channels], weight[..., channels:])
    complex_weight = complex_weight.reshape(modes[0] + 1, 2 * modes[1] + 1, channels, channels)
    result = torch.zeros_like(spectrum)
    for k in range(modes[0] + 1):
        for i, signed in enumerate(range(-modes[1], modes[1] + 1)):
            result[:, k, signed] = spectrum[:, k, signed] @ complex_weight[k, i]
    back = torch.fft.irfft2(result, s=(size[1], size[0]), dim=(2, 1), norm="forward")
    return back[:, :height, :width]


SIZES_AND_MODES = [
    ((16, 16), (5, 5)),
    ((16, 16), (8, 7)),  # Nyquist along the halved axis
    ((15, 9), (7, 4)),  # odd sizes, all modes
    ((12, 17), (6, 3)),
    ((8, 8), (0, 0)),  # the mean alone
    ((10, 6), (0, 2)),
    ((32, 1), (16, 0)),  # one axis
    ((33, 1), (4, 0)),
]


@pytest.mark.parametrize(("grid", "modes"), SIZES_AND_MODES)
def test_the_real_spectral_convolution_equals_complex_ffts(grid, modes):
    generator = torch.Generator().manual_seed(31)
    layer = SpectralConvolution(3, modes)
    torch.nn.init.normal_(layer.weight, generator=generator)
    values = torch.randn(2, *grid, 3, generator=generator)
    bypass = torch.randn(2, *grid, 3, generator=generator)
    result = layer(values, bypass, fourier_basis(grid, modes)) - bypass
    expected = reference_convolution(values, layer.weight, modes, (0, 0))
    assert (result - expected).norm() < 1e-5 * expected.norm()


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(4, 14),
    width=st.integers(4, 14),
    share=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    data=st.data(),
)
def test_padding_equals_the_fft_of_the_zero_padded_field(height, width, share, data):
    padding = (round(share * height), round(share * width))
    modes = (
        data.draw(st.integers(0, (height + padding[0]) // 2)),
        data.draw(st.integers(0, (width + padding[1] - 1) // 2)),
    )
    layer = SpectralConvolution(2, modes)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(height * 17 + width))
    values = torch.randn(1, height, width, 2, generator=torch.Generator().manual_seed(13))
    result = layer(values, torch.zeros_like(values), fourier_basis((height, width), modes, share))
    expected = reference_convolution(values, layer.weight, modes, padding)
    assert (result - expected).norm() < 1e-5 * expected.norm() + 1e-6


def test_gradients_of_the_real_convolution_equal_those_of_complex_ffts():
    modes, grid = (4, 3), (8, 9)
    layer = SpectralConvolution(3, modes)
    values = torch.randn(2, *grid, 3, generator=torch.Generator().manual_seed(77), requires_grad=True)
    weights = torch.randn(2, *grid, 3, generator=torch.Generator().manual_seed(78))
    own = torch.autograd.grad(
        (layer(values, torch.zeros(2, *grid, 3), fourier_basis(grid, modes)) * weights).sum(), [values, layer.weight]
    )
    reference = torch.autograd.grad(
        (reference_convolution(values, layer.weight, modes, (0, 0)) * weights).sum(), [values, layer.weight]
    )
    for a, b in zip(own, reference, strict=True):
        assert (a - b).norm() < 1e-5 * b.norm()


def test_white_noise_keeps_its_variance_through_a_fresh_convolution():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(91)
        layer = SpectralConvolution(32, (16, 15))
        values = torch.randn(4, 32, 32, 32)
    result = layer(values, torch.zeros_like(values), fourier_basis((32, 32), (16, 15)))
    assert 0.9 < float(result.var().detach()) < 1.1


def band_limited(grid, waves=2):
    """The same smooth field sampled at the cell centres of any grid."""
    lines = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in grid]
    points = torch.meshgrid(*lines, indexing="ij")
    phase = sum((i + 1) * waves * 2 * math.pi * p for i, p in enumerate(points))
    return (torch.sin(phase) + 0.5 * torch.cos(2 * math.pi * points[0])).float()[None, None]


@pytest.mark.parametrize(("coarse", "fine"), [((24, 24), (72, 48)), ((32,), (96,))])
def test_a_fourier_layer_commutes_with_refining_a_band_limited_field(coarse, fine):
    """Without nonlinearity in between the equality is exact; every third point of the finer grid is a coarse one."""
    modes = (6, 6) if len(coarse) == 2 else (6, 0)
    layer = SpectralConvolution(1, modes)

    def apply(grid):
        two = (*grid, 1)[:2]
        values = band_limited(grid).reshape(1, *two, 1)
        return layer(values, torch.zeros_like(values), fourier_basis(two, modes)).reshape(grid).detach()

    # Cell centres coincide when the refinement is odd, so compare through the mean of the middle along an even axis.
    refined = apply(fine)[1::3]
    reference = apply(coarse)
    if len(coarse) == 2:
        spectrum = torch.fft.rfft(refined, dim=1, norm="forward")[:, : coarse[1] // 2 + 1]
        shift = torch.exp(1j * math.pi * torch.arange(coarse[1] // 2 + 1) * (1 / coarse[1] - 1 / fine[1]))
        refined = torch.fft.irfft(spectrum * shift, n=coarse[1], dim=1, norm="forward")
    assert (refined - reference).norm() < 1e-5 * reference.norm()


def test_a_whole_fno_gives_nearly_the_same_function_on_a_finer_grid():
    """GELU makes waves beyond the coarse grid, so the difference falls with resolution, at a bounded size."""
    model = build_model("fno", {"width": 8, "modes": 4, "projection": 8}, grid_io((21, 21)), seed=11)

    def apply(points):
        return model(band_limited((points, points), waves=1), torch.zeros(1, 0)).detach()

    reference = apply(189)
    differences = [
        float((apply(n)[..., :, :] - reference[..., 189 // n // 2 :: 189 // n, 189 // n // 2 :: 189 // n]).norm() / n)
        for n in (21, 63)
    ]
    assert differences[0] < 0.02 * float(reference.norm() / 189)
    assert differences[1] < 0.5 * differences[0]


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize(
    "io",
    [
        grid_io((16, 16)),
        grid_io((12, 20), inputs=2, outputs=3, parameters=("k", "f")),
        grid_io((24,), inputs=1, parameters=("k",), times=(0.1, 0.2)),
        grid_io((13, 11), inputs=0, parameters=("a", "b", "c"), times=(1.0, 2.0)),
    ],
    ids=["field", "fields-and-scalars", "one-axis-in-time", "scalars-only-odd"],
)
def test_every_model_maps_fields_and_scalars_to_outputs_with_finite_gradients(name, io):
    options = {"fno": {"width": 6, "modes": 3, "projection": 8}, "mlp": {"hidden": [16]}}.get(
        name, {"width": 4, "levels": 2}
    )
    model = build_model(name, options, io, seed=5)
    generator = torch.Generator().manual_seed(3)
    fields = torch.randn(3, len(io.channels), *io.grid, generator=generator)
    scalars = torch.randn(3, io.scalars, generator=generator)
    result = model(fields, scalars)
    assert result.shape == (3, len(io.outputs), *io.grid)
    result.square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
    assert sum(float(p.grad.norm()) > 0 for p in model.parameters()) > 0.7 * len(list(model.parameters()))


@pytest.mark.parametrize("name", ["fno", "unet"])
def test_scalars_change_the_predicted_field(name):
    model = build_model(name, {"width": 8}, grid_io((32, 32), parameters=("k",)), seed=5)
    fields = torch.zeros(1, 1, 32, 32)
    assert not torch.allclose(model(fields, torch.zeros(1, 1)), model(fields, torch.ones(1, 1)), atol=1e-4)


@pytest.mark.parametrize("grid", [(8, 8), (9, 15), (31, 16), (17,), (30,)])
def test_unet_serves_sizes_that_its_levels_do_not_divide(grid):
    model = build_model("unet", {"width": 4, "levels": 2}, grid_io(grid), seed=9)
    result = model(torch.randn(2, 1, *grid, generator=torch.Generator().manual_seed(21)), torch.zeros(2, 0))
    assert result.shape == (2, 1, *grid)


def test_unet_extends_by_repeating_the_last_values_and_crops_what_it_added():
    model = build_model("unet", {"width": 4, "levels": 2, "padding": "replicate"}, grid_io((12, 12)), seed=9)
    with torch.no_grad():
        model.first[0].weight[:, 1:] = 0  # positions differ between the two grids; without them the results are equal
    field = torch.randn(1, 1, 12, 10, generator=torch.Generator().manual_seed(21))
    extended = torch.cat([field, field[..., -1:], field[..., -1:]], -1)
    result = model(field, torch.zeros(1, 0))
    assert result.shape == (1, 1, 12, 10)
    assert torch.allclose(result, model(extended, torch.zeros(1, 0))[..., :10], atol=1e-5)


def test_mlp_serves_a_mesh_with_an_input_per_cell():
    io = mesh_io()
    model = build_model("mlp", {"hidden": [32, 32]}, io)
    assert io.scalars == 1 + 7
    assert model(torch.zeros(4, 0, 11), torch.zeros(4, 8)).shape == (4, 1, 11)


def test_the_published_heat_network_has_its_published_layers():
    io = grid_io((10, 10), inputs=0, parameters=("t0", "t1", "t2", "t3", "t4"), times=(0.1, 0.2))
    model = build_model("mlp", {}, io)
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert shapes == [(256, 6), (256, 256), (100, 256)]


def smoothing_problem(count, grid, seed):
    """u = (1 - Δ/40)^-1 a on the torus: smooth, linear, nonlocal."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.standard_normal((count, *grid)))
    waves = np.fft.fftfreq(grid[0], 1 / grid[0])[:, None] ** 2 + np.fft.rfftfreq(grid[1], 1 / grid[1]) ** 2
    a = np.fft.irfft2(spectrum * np.exp(-waves / 8), s=grid)
    u = np.fft.irfft2(np.fft.rfft2(a) / (1 + waves / 40), s=grid)
    return [torch.as_tensor(x / x.std(), dtype=torch.float32)[:, None] for x in (a, u)]


def fit(model, fields, scalars, target, steps, lr):
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = ((model(fields, scalars) - target).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)).mean()
        loss.backward()
        optimiser.step()
    return float(loss.detach())


def test_a_tiny_fno_overfits_a_nonlocal_operator():
    a, u = smoothing_problem(4, (16, 16), 23)
    model = build_model("fno", {"width": 8, "modes": 5, "layers": 2, "projection": 16}, grid_io(), seed=5)
    assert fit(model, a, torch.zeros(4, 0), u, steps=60, lr=1e-2) < 0.06


def test_an_mlp_overfits_fields_given_by_scalars():
    generator = torch.Generator().manual_seed(19)
    scalars = torch.rand(8, 2, generator=generator)
    x = torch.linspace(0, 1, 40)
    target = (torch.sin(3 * scalars[:, :1] * x) + scalars[:, 1:])[:, None]
    io = grid_io((40,), inputs=0, parameters=("p", "q"))
    model = build_model("mlp", {"hidden": [64, 64]}, io, seed=5)
    assert fit(model, torch.zeros(8, 0, 40), scalars, target, steps=200, lr=5e-3) < 0.03


def test_a_tiny_unet_overfits_a_local_operator():
    generator = torch.Generator().manual_seed(29)
    a = torch.randn(4, 1, 16, 16, generator=generator)
    target = a.clamp(min=0) + 0.5 * a.roll(1, 2)
    model = build_model("unet", {"width": 8, "levels": 2, "padding": "circular"}, grid_io(), seed=5)
    assert fit(model, a, torch.zeros(4, 0), target, steps=60, lr=1e-2) < 0.2


def test_the_seed_alone_decides_the_weights_and_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    first, again, other = (build_model("fno", {"width": 4, "modes": 2}, grid_io(), seed=s) for s in (5, 5, 7))
    assert torch.equal(before, torch.random.get_rng_state())
    pairs = list(zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_matrices_of_the_transform_are_not_saved_with_the_weights():
    model = build_model("fno", {"width": 4, "modes": 2}, grid_io())
    assert not [name for name in model.state_dict() if "basis" in name or "positions" in name]


BAD_OPTIONS = [
    ("fno", {"widht": 4}, r"learner\.model\.widht = 4 is not a known key; did you mean 'width'\?"),
    ("fno", {"zzz": 4}, r"learner\.model\.zzz = 4 is not a known key; known keys: channel_mlp, layers"),
    ("fno", {"width": 0}, r"learner\.model\.width = 0 .*an integer >= 1 and <= 1024; the default is 32"),
    ("fno", {"width": 3.5}, r"learner\.model\.width = 3\.5 is not allowed: it should be an integer"),
    ("fno", {"width": True}, r"learner\.model\.width = True"),
    ("fno", {"channel_mlp": 1}, r"learner\.model\.channel_mlp = 1 .*true or false"),
    ("fno", {"padding": float("nan")}, r"learner\.model\.padding = nan .*a finite number >= 0 and <= 4"),
    ("fno", {"modes": 9}, r"learner\.model\.modes = \[9\]: 9 exceeds 8, .*use modes <= 8, or a finer grid"),
    ("fno", {"modes": [8, 8]}, r"8 exceeds 7, .*along axis 1; use modes <= 7"),
    ("fno", {"modes": [4, 4, 4]}, r"3 entries for a grid of 2 axes; give one number, or one for each axis"),
    ("fno", {"modes": []}, r"an integer or a list of integers >= 0"),
    ("mlp", {"activation": "relo"}, r"learner\.model\.activation = 'relo' .*one of 'relu', 'gelu', 'silu', 'tanh'"),
    ("mlp", {"hidden": [65536, 65536]}, r"learner\.model\.hidden = .*weights from 256 inputs to 256 outputs; at most"),
    ("unet", {"levels": 4}, r"learner\.model\.levels = 4 halves a grid of \(16, 16\) below 2 points; use levels <= 3"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD_OPTIONS)
def test_a_bad_option_names_key_value_constraint_and_remedy(name, options, message):
    with pytest.raises(StudyError, match=message):
        check_model(name, options, grid_io())


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(StudyError, match=r"model\.name = 'gnn' is not a known model; choose one of fno, mlp, unet"):
        check_model("gnn", {}, grid_io())


@pytest.mark.parametrize("name", ["fno", "unet"])
def test_grid_models_refuse_a_mesh_before_anything_is_built(name):
    with pytest.raises(StudyError, match=rf"{name}' needs fields on a structured grid, but 'u' .*\('node',\).*'mlp'"):
        check_model(name, {}, mesh_io())


@pytest.mark.parametrize("name", ["fno", "unet"])
def test_grid_models_refuse_three_axes_and_inputs_of_another_shape(name):
    with pytest.raises(StudyError, match=r"takes grids of 1 or 2 axes, not \(16, 16, 16\)"):
        check_model(name, {}, grid_io((16, 16, 16)))
    trace = IOSpec((TensorSpec("g", ("side",), (64,)),), (TensorSpec("u", ("y", "x"), (16, 16)),), ())
    with pytest.raises(StudyError, match=r"needs every input on the grid \(16, 16\).*'g' has shape \(64,\).*'mlp'"):
        check_model(name, {}, trace)


def test_mlp_refuses_a_problem_without_inputs():
    with pytest.raises(StudyError, match="needs an input"):
        check_model("mlp", {}, grid_io(inputs=0))


def test_a_grid_too_coarse_for_trained_modes_is_refused_at_prediction():
    model = build_model("fno", {"width": 4, "modes": 6}, grid_io())
    with pytest.raises(ValueError, match=r"a grid of \(8, 8\) does not resolve wavenumbers \(6, 6\); use a finer grid"):
        model(torch.zeros(1, 1, 8, 8), torch.zeros(1, 0))


def test_padding_lets_a_grid_carry_more_modes():
    check_model("fno", {"modes": [12, 11], "padding": 0.5}, grid_io())


def test_every_model_describes_its_options_for_people():
    cards = {card.name: card for card in describe_models()}
    assert set(cards) == set(MODELS)
    width = next(option for option in cards["fno"].options if option.key == "width")
    assert (width.default, width.constraint) == (32, "an integer >= 1 and <= 1024")
    assert all(card.summary and all(option.help for option in card.options) for card in cards.values())
