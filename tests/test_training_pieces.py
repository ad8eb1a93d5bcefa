"""What training is made of: objective, mixing, schedule, optimiser, starting values; against the published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neurorecon.recordings import Trial, open_recording, write_sensorium
from neurorecon.recordings.prepared import prepare
from neurorecon.training import trainer
from neurorecon.training.initialise import retinotopic_positions
from neurorecon.training.objective import cutmix, cutmix_box, poisson_loss
from neurorecon.training.schedule import warmup_cosine
from neurorecon.training.trainer import TrainingSettings
from tests.shared_data import SHARED, needs_shared


def test_poisson_loss_is_summed_over_frames_and_neurons_and_averaged_over_windows():
    rng = np.random.default_rng(0)
    p, y = rng.gamma(1.0, 1.0, (2, 3, 4, 5))
    weights = rng.random(5)
    expected = np.mean([((a - b * np.log(a + 1e-8)) * weights).sum() for a, b in zip(p, y)])
    found = float(poisson_loss(jnp.asarray(p), jnp.asarray(y), jnp.asarray(weights)))
    assert found == pytest.approx(expected, rel=1e-5)
    # Nothing predicted where something was recorded: large, not infinite.
    assert np.isfinite(poisson_loss(jnp.zeros((1, 1, 1)), jnp.full((1, 1, 1), 2.0), jnp.ones(1)))


@needs_shared("reference/training_pieces.npz")
def test_published_poisson_loss():
    with np.load(SHARED / "reference/training_pieces.npz") as r:
        for name in ("onehot", "single_mouse", "soft"):
            # Published: weights of (item, mouse), divided by their sum over the items of a mouse.
            total = 0.0
            weights = r[f"poisson_weights_{name}"].astype(np.float64)
            weights = weights / weights.sum()
            for mouse in (0, 1):
                p, y = (r[f"poisson_{kind}{mouse}"].transpose(0, 2, 1) for kind in ("pred", "target"))
                for item in range(4):
                    one = poisson_loss(jnp.asarray(p[item : item + 1]), jnp.asarray(y[item : item + 1]), jnp.ones(1))
                    total += weights[item, mouse] * float(one)
            assert total == pytest.approx(float(r[f"poisson_loss_{name}"]), rel=1e-4)


@needs_shared("reference/training_pieces.npz")
def test_published_schedule():
    with np.load(SHARED / "reference/training_pieces.npz") as r:
        rates, base, low = r["lr_per_iteration"], float(r["lr_base"]), float(r["lr_min"])
        warm, end = (int(x) for x in r["lr_stage_ends"])
        last = float(r["lr_final_after_last_step"])
        schedule = warmup_cosine(base, warmup_steps=warm, num_steps=end, floor=low / base)
        np.testing.assert_allclose([float(schedule(k)) for k in range(len(rates))], rates, rtol=1e-5)
        assert float(schedule(end)) == pytest.approx(last, rel=1e-4)


def test_schedule_ends():
    schedule = warmup_cosine(2.0, warmup_steps=4, num_steps=20)
    assert float(schedule(0)) == 0 and float(schedule(2)) == 1.0 and float(schedule(4)) == 2.0
    assert float(schedule(20)) == pytest.approx(0.02) and float(schedule(500)) == pytest.approx(0.02)
    assert np.isfinite([float(warmup_cosine(1.0, warmup_steps=0, num_steps=1)(k)) for k in range(3)]).all()


@needs_shared("reference/training_pieces.npz")
def test_published_adamw():
    with np.load(SHARED / "reference/training_pieces.npz") as r:
        params = jnp.asarray(r["adamw_p0"])
        rates = jnp.asarray(r["adamw_lrs"])
        rule = optax.adamw(lambda k: rates[k], weight_decay=0.05)
        state = rule.init(params)
        for gradient, expected in zip(r["adamw_grads"], r["adamw_params"]):
            updates, state = rule.update(jnp.asarray(gradient), state, params)
            params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(params, expected, rtol=2e-5, atol=1e-6)


@needs_shared("reference/training_pieces.npz")
def test_published_cutmix_boxes_of_square_frames():
    with np.load(SHARED / "reference/training_pieces.npz") as r:
        one, two = (r[f"cutmix_square_input{k}"][0] for k in (1, 2))
        for (share, row, column), box, area, mixed in zip(
            r["cutmix_square_cases"], r["cutmix_square_boxes"], r["cutmix_square_lam_effective"],
            r["cutmix_square_mixed_input"],
        ):  # fmt: skip
            r0, r1, c0, c1 = cutmix_box(float(share), int(row), int(column), 64, 64)
            assert (r0, c0, r1, c1) == tuple(box)  # published order: both starts, then both ends
            assert (r1 - r0) * (c1 - c0) / 64**2 == pytest.approx(float(area))
            expected = one.copy()
            expected[..., r0:r1, c0:c1] = two[..., r0:r1, c0:c1]
            np.testing.assert_array_equal(expected, mixed[0])


class Drawn:
    """A generator that draws what the test wants."""

    def __init__(self, share, row, column):
        self._share, self._places = share, [row, column]

    def random(self):
        return 0.3

    def beta(self, a, b):
        assert (a, b) == (1.0, 1.0)
        return self._share

    def integers(self, high):
        return self._places.pop(0) % high


def mixable():
    rng = np.random.default_rng(0)
    shapes = (3, 4, 12, 20), (3, 4, 5), (3, 4, 4)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def test_cutmix_takes_a_box_and_its_share_of_the_responses():
    stimulus, responses, behaviour = mixable()
    mixed, answers, behaved = cutmix(stimulus, responses, behaviour, Drawn(0.25, 6, 3), 0.5)
    # Half the height and half the width, around (6, 3), cut at the border: rows 3..8, columns 0..7.
    inside = np.zeros((12, 20), bool)
    inside[3:9, 0:8] = True
    other = np.roll(stimulus, 1, axis=0)
    np.testing.assert_array_equal(mixed[..., inside], other[..., inside])
    np.testing.assert_array_equal(mixed[..., ~inside], stimulus[..., ~inside])
    area = 48 / 240
    expected = (1 - area) * responses + area * np.roll(responses, 1, axis=0)
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(behaved[0], (1 - area) * behaviour[0] + area * behaviour[2], rtol=1e-5, atol=1e-6)
    assert answers.dtype == np.float32 and mixable()[0][0, 0, 3, 0] == stimulus[0, 0, 3, 0]  # given arrays stay


def test_cutmix_happens_with_its_probability():
    given = mixable()
    for probability, low, high in ((0.0, 0, 0), (0.5, 70, 130), (1.0, 190, 200)):
        mixed = 0
        for seed in range(200):
            out = cutmix(*given, np.random.default_rng(seed), probability)
            mixed += not np.array_equal(out[1], given[1])
        assert low <= mixed <= high
    # One window alone has nothing to mix with.
    alone = tuple(a[:1] for a in given)
    assert cutmix(*alone, np.random.default_rng(0), 1.0)[0] is alone[0]


def test_retinotopy_is_found(tmp_path):
    rng = np.random.default_rng(0)
    places = [(2, 3), (13, 20)]
    trials = []
    for number in range(2):
        contrast = rng.integers(0, 2, (120, 4, 6)).repeat(4, axis=1).repeat(4, axis=2)
        movie = 127.5 + rng.normal(0, 30, (120, 16, 24)) * contrast
        seen = np.stack([np.roll(contrast[:, i, j], 3) for i, j in places], axis=1)
        trials.append(
            Trial(str(number), "m", "train", np.clip(movie, 0, 255), 1.0 + seen, np.zeros((120, 4), np.float32))
        )
    write_sensorium(tmp_path / "m", trials)
    found = retinotopic_positions(prepare(open_recording(tmp_path / "m"), None))
    half = 8
    expected = [((i // 4 * 4 + 2 - 8) / half, (j // 4 * 4 + 2 - 12) / half) for i, j in places]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_only_what_ought_to_decay_decays():
    one = jnp.ones(2)
    params = {"spatial0": {"kernel": one}, "norm0": {"scale": one}, "readout0": {"position": one}}
    settings = TrainingSettings(weight_decay=0.5, learning_rate=0.1, warmup_steps=0, num_steps=10)
    rule = trainer._optimiser(settings)
    updates, _ = rule.update(jax.tree.map(jnp.zeros_like, params), rule.init(params), params)
    np.testing.assert_allclose(updates["spatial0"]["kernel"], -0.05, rtol=1e-5)
    assert not np.any(updates["norm0"]["scale"]) and not np.any(updates["readout0"]["position"])
    # Positions move at a share of the others' rate.
    updates, _ = rule.update(jax.tree.map(jnp.ones_like, params), rule.init(params), params)
    np.testing.assert_allclose(updates["readout0"]["position"], 0.1 * updates["norm0"]["scale"], rtol=1e-5)
