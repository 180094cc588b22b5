"""PHPG: behaviours, error-guided corrections and the losses that tie regions together, all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from training_scenes import TINY_SIZE, a_tiny_sam2, logits_of

from SAM2AssistLib.engine.heads import Decoded, decode
from SAM2AssistLib.errors import InputError, ModelError
from SAM2AssistLib.prompting.error_head import (
    ERROR_HEAD_FILE,
    ErrorHead,
    channels_of,
    decoder_features,
    load_error_head,
)
from SAM2AssistLib.training.behaviours import BEHAVIOURS, Draws, choose_behaviours, first_prompts
from SAM2AssistLib.training.corrections import correction_clicks
from SAM2AssistLib.training.phpg import Prompting, Regions, phpg_step, row_weights
from SAM2AssistLib.training.region_losses import competition, consistency, error_loss, row_losses
from SAM2AssistLib.training.regions_on_device import around, bounding_boxes, deepest, erosion_depth, pick

S = TINY_SIZE


def rectangle(top, left, bottom, right, size=S) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def draws_of(count, seed=0) -> Draws:
    return Draws([(seed, n) for n in range(count)])


def some_regions(seed: int, count: int = 4, size: int = 24) -> torch.Tensor:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((count, size, size)), (0, 2, 2))
    return torch.from_numpy(noise > 0)


# Measuring and picking


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_the_erosion_depth_follows_the_distance_transform(seed):
    regions = some_regions(seed)
    depth = erosion_depth(regions)
    exact = np.stack([ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1] for region in regions.numpy()])
    assert bool(((depth > 0) == regions).all())
    assert np.abs(depth.numpy() - exact).max() <= 1 + 0.15 * exact.max()


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_what_is_picked_lies_in_the_region_and_a_row_does_not_depend_on_the_others(seed):
    regions = some_regions(seed)
    chance = torch.rand(len(regions), generator=torch.Generator().manual_seed(seed))
    places = pick(regions, chance)
    for region, (x, y), alone in zip(regions, places.tolist(), chance, strict=True):
        assert not region.any() or region[y, x]
        assert pick(region[None], alone[None]).tolist() == [[x, y]]


def test_every_pixel_of_a_region_is_picked_equally_often():
    region = rectangle(2, 3, 4, 5, 8)
    chances = (torch.arange(400) + 0.5) / 400
    places = pick(region.expand(400, -1, -1), chances)
    _, counts = torch.unique(places, dim=0, return_counts=True)
    assert counts.tolist() == [100] * 4


def test_the_last_pixel_is_picked_for_a_chance_just_below_one():
    places = pick(rectangle(6, 7, 8, 8, 8)[None], torch.tensor([np.nextafter(np.float32(1), np.float32(0))]))
    assert places.tolist() == [[7, 7]]


def test_the_deepest_pixel_of_a_square_is_its_middle():
    assert deepest(rectangle(1, 1, 8, 8, 12)[None])[0].nonzero().tolist() == [[4, 4]]


def test_boxes_and_surroundings_are_those_of_the_mask():
    mask = rectangle(3, 5, 9, 20)[None]
    assert bounding_boxes(mask).tolist() == [[[5, 3], [19, 8]]]
    ring = around(mask, 2)[0]
    assert not bool((ring & mask[0]).any())
    assert int(ring.sum()) == 10 * 19 - 6 * 15


# Round 0


def prompts_of(behaviour: str, mask: torch.Tensor, count=40, seed=0):
    kinds = torch.full((count,), list(BEHAVIOURS).index(behaviour))
    return first_prompts(mask.expand(count, -1, -1), kinds, draws_of(count, seed))


def test_a_tight_box_is_the_box_of_the_object():
    prompts = prompts_of("tight box", rectangle(10, 20, 30, 50), 1)
    assert prompts.labels[0].tolist() == [2, 3] + [-1] * 6
    assert prompts.points[0, :2].tolist() == [[20, 10], [49, 29]]


def test_a_jittered_box_stays_within_ten_percent_and_a_loose_one_is_larger_on_every_side():
    mask = rectangle(20, 20, 40, 40)
    jittered, loose = prompts_of("jittered box", mask).points, prompts_of("loose box", mask).points
    assert float((jittered[:, 0] - 20).abs().max()) <= 2
    assert float((jittered[:, 1] - 39).abs().max()) <= 2
    assert float((jittered[:, 0] - 20).abs().max()) > 0.5
    assert bool(((loose[:, 0] <= 18) & (loose[:, 0] >= 15)).all())
    assert bool(((loose[:, 1] >= 41) & (loose[:, 1] <= 44)).all())


@pytest.mark.parametrize("behaviour", ["centre click", "interior click", "border click", "box and click", "scribble"])
def test_positive_points_lie_on_the_object(behaviour):
    mask = rectangle(11, 21, 45, 51)
    prompts = prompts_of(behaviour, mask)
    grown = torch.nn.functional.max_pool2d(mask[None, None].float(), 3, 1, 1)[0, 0] > 0  # a cell is 2 pixels wide
    x, y = prompts.points[prompts.labels == 1].round().long().T
    assert len(x) >= 40
    assert bool(grown[y, x].all())


def test_clicks_are_where_their_name_says():
    mask = rectangle(10, 20, 40, 50)
    depth = erosion_depth(mask[None])[0]
    for behaviour, low, high in (("centre click", 13, 15), ("border click", 1, 2)):
        x, y = prompts_of(behaviour, mask).points[:, 2].floor().long().T
        assert bool(((depth[y, x] >= low) & (depth[y, x] <= high)).all()), behaviour
    places = prompts_of("interior click", mask).points[:, 2]
    assert len(torch.unique(places, dim=0)) > 20


def test_a_scribble_is_a_stroke_of_several_points():
    prompts = prompts_of("scribble", rectangle(10, 10, 50, 50))
    assert (prompts.labels == 1).sum(1).float().mean() > 4
    assert not bool((prompts.labels == 2).any())


def test_an_object_of_one_pixel_can_be_prompted_in_every_way():
    for behaviour in BEHAVIOURS:
        prompts = prompts_of(behaviour, rectangle(63, 0, 64, 1), 3)
        assert bool(prompts.points.isfinite().all())
        assert bool((prompts.points >= 0).all())
        assert bool((prompts.points <= 63).all())


def test_behaviours_come_as_often_as_their_shares_and_never_twice_for_a_region():
    chosen = choose_behaviours(draws_of(3000), 3, BEHAVIOURS)
    first = torch.bincount(chosen[:, 0], minlength=len(BEHAVIOURS)) / 3000
    assert torch.allclose(first, torch.tensor(list(BEHAVIOURS.values())), atol=0.03)
    assert all(len(set(row)) == 3 for row in chosen.tolist())


def test_few_behaviours_repeat_for_a_region():
    chosen = choose_behaviours(draws_of(5), 3, {"centre click": 1.0})
    assert torch.unique(chosen).tolist() == [list(BEHAVIOURS).index("centre click")]
    assert chosen.shape == (5, 3)


@pytest.mark.parametrize("shares", [{"mind reading": 1.0}, {"tight box": 0.0}, {"tight box": -1.0}, {}])
def test_behaviours_that_cannot_be_drawn_are_refused(shares):
    with pytest.raises(InputError, match="behaviour"):
        Prompting(behaviours=shares)


def test_a_row_draws_the_same_whatever_rows_are_beside_it():
    together, alone = Draws([(1, 2), (3, 4)]), Draws([(3, 4)])
    assert together.uniform(5)[1].equal(alone.uniform(5)[0])
    assert together.normal(2)[1].equal(alone.normal(2)[0])


# Corrections


def corrections(predicted, truth, heuristic, seed=0, groups=None):
    groups = torch.arange(len(truth)) if groups is None else groups
    return correction_clicks(logits_of(predicted), truth, groups, draws_of(len(truth), seed), {heuristic: 1.0})


def test_a_centre_click_lies_in_the_middle_of_the_larger_error():
    truth = rectangle(8, 8, 40, 40)[None]
    missing = rectangle(8, 8, 40, 20)[None]
    points, labels = corrections(missing, truth, "centre")
    assert labels.tolist() == [[1, -1]]
    x, y = points[0, 0].tolist()
    assert 25 <= x <= 34
    assert 16 <= y <= 32
    points, labels = corrections(rectangle(8, 8, 60, 60)[None], truth, "centre")
    assert labels.tolist() == [[0, -1]]
    x, y = points[0, 0].round().long().tolist()
    assert not bool(truth[0, y, x])


@pytest.mark.parametrize("heuristic", ["centre", "anywhere", "border"])
def test_a_click_on_an_error_says_what_the_truth_says(heuristic):
    truth = rectangle(8, 8, 40, 40).expand(30, -1, -1)
    predicted = rectangle(16, 16, 56, 56).expand(30, -1, -1)
    points, labels = corrections(predicted, truth, heuristic)
    x, y = points[:, 0].round().long().T
    assert labels[:, 0].tolist() == truth[0][y, x].long().tolist()
    assert bool((truth[0] ^ predicted[0])[y, x].all())


def test_a_shaky_hand_misses_the_middle_by_a_few_pixels():
    truth = rectangle(8, 8, 56, 56).expand(60, -1, -1)
    steady = corrections(torch.zeros_like(truth), truth, "centre")[0][:, 0]
    shaky, labels = corrections(torch.zeros_like(truth), truth, "displaced")
    assert labels[:, 0].tolist() == [1] * 60
    assert 1.5 < float((shaky[:, 0] - steady).std()) < 6


def test_a_click_just_outside_is_positive_and_near():
    truth = rectangle(16, 16, 40, 40).expand(20, -1, -1)
    points, labels = corrections(torch.zeros_like(truth), truth, "just outside")
    x, y = points[:, 0].round().long().T
    assert labels[:, 0].tolist() == [1] * 20
    assert not bool(truth[0][y, x].any())
    assert bool(((x >= 11) & (x < 45) & (y >= 11) & (y < 45)).all())


def test_a_perfect_mask_gets_one_more_click_inside_and_an_absent_object_one_outside():
    masks = torch.stack([rectangle(8, 8, 40, 40), torch.zeros(S, S, dtype=torch.bool)])
    for heuristic in ("centre", "anywhere", "border", "displaced", "from truth", "just outside"):
        _, labels = corrections(masks, masks, heuristic)
        assert labels[1, 0] == 0, heuristic
        assert labels[0, 0] == 1, heuristic


def test_what_spills_into_a_neighbour_is_negative_here_and_positive_there():
    left, right = rectangle(8, 4, 56, 32), rectangle(8, 32, 56, 60)
    truth = torch.stack([left, right])
    predicted = torch.stack([left | right, right])
    same, apart = torch.tensor([0, 0]), torch.tensor([0, 1])
    points, labels = corrections(predicted, truth, "centre", groups=same)
    assert labels.tolist() == [[0, -1], [1, 1]]
    assert points[1, 1].equal(points[0, 0])
    x, y = points[1, 1].round().long().tolist()
    assert bool(right[y, x])
    _, labels = corrections(predicted, truth, "centre", groups=apart)
    assert labels.tolist() == [[0, -1], [1, -1]]


# Losses


def decoded_of(logits: torch.Tensor, score=5.0) -> Decoded:
    count = len(logits)
    return Decoded(logits, torch.ones(count), torch.full((count, 1), score), torch.zeros(count, 4))


def test_the_losses_of_a_row_do_not_depend_on_the_others():
    masks = torch.stack([rectangle(8, 8, 40, 40), rectangle(20, 20, 60, 60)])
    logits = logits_of(masks.roll(1, 0), 2.0)
    both = row_losses(decoded_of(logits), masks)
    for n in range(2):
        alone = row_losses(decoded_of(logits[n : n + 1]), masks[n : n + 1])
        assert torch.allclose(alone.loss[0], both.loss[n], atol=1e-6)
        assert torch.allclose(alone.score[0], both.score[n], atol=1e-6)


def test_a_right_mask_costs_less_than_a_wrong_one_and_an_absent_object_has_no_dice():
    masks = torch.stack([rectangle(8, 8, 40, 40)] * 2 + [torch.zeros(S, S, dtype=torch.bool)])
    logits = logits_of(torch.stack([masks[0], ~masks[0], masks[2]]))
    result = row_losses(decoded_of(logits), masks)
    assert result.loss[0] < 0.2 < result.loss[1]
    assert float(result.dice[0]) > 0.98
    assert bool(result.dice[2].isnan())
    assert bool(result.score[2].isnan())


@pytest.mark.parametrize("dy", [0, 1], ids=["level", "slanting"])
def test_a_vessel_of_one_pixel_is_taught_as_there_though_it_is_half_a_cell_of_the_losses_at_most(dy):
    masks = torch.zeros(2, 256, 256, dtype=torch.bool)
    for n in range(30):
        masks[0, 101 + dy * n, 60 + n] = True
    masks[1, 101, 60] = True
    result = row_losses(decoded_of(torch.full((2, 1, 64, 64), -4.0), -8.0), masks)
    assert float(result.dice[0]) == 0.0
    assert bool(result.score[0].isfinite())
    assert float(result.loss[0]) > 8
    assert bool(result.dice[1].isnan())  # a single pixel is nothing to learn from


def test_an_object_that_has_ended_is_cheap_only_if_mask_and_score_say_so():
    nothing = torch.zeros(1, S, S, dtype=torch.bool)
    quiet = row_losses(decoded_of(logits_of(nothing), -8.0), nothing).loss
    goes_on = row_losses(decoded_of(logits_of(~nothing), -8.0), nothing).loss
    claims = row_losses(decoded_of(logits_of(nothing), 8.0), nothing).loss
    assert float(quiet) < 0.01
    assert float(goes_on) > 1
    assert float(claims) > 1


def test_competition_pushes_back_the_mask_that_claims_anothers_pixels():
    truth = torch.stack([rectangle(0, 0, S, S // 2), rectangle(0, S // 2, S, S)])
    logits = torch.full((2, 1, S // 4, S // 4), 1.0, requires_grad=True)
    cost = competition(logits, truth, torch.tensor([0, 0]))
    cost.sum().backward()
    left, right = logits.grad[0, 0, :, 2], logits.grad[1, 0, :, 2]
    assert bool((left < 0).all())  # grows where it is the truth
    assert bool((right > 0).all())  # shrinks there
    apart = competition(logits.detach(), truth, torch.tensor([0, 1]))
    assert bool((apart < cost).all())


def test_consistency_is_nothing_for_like_masks_and_much_for_unlike_ones():
    one, other = logits_of(rectangle(8, 8, 40, 40)[None]), logits_of(rectangle(40, 40, 60, 60)[None])
    assert float(consistency(torch.cat([one, one]), 2).max()) < 0.01
    assert float(consistency(torch.cat([one, other]), 2).min()) > 0.3
    assert consistency(torch.cat([one, other]), 1).tolist() == [0, 0]


def test_rows_are_weighted_so_that_a_slice_counts_as_one():
    weights = row_weights(torch.tensor([0, 0, 0, 1]), torch.tensor([1.0, 2.0]))
    assert torch.allclose(weights, torch.tensor([1 / 6, 1 / 6, 1 / 6, 1.0]))


# The error head


def test_the_error_head_learns_where_masks_are_wrong():
    torch.manual_seed(0)
    truth = torch.stack([rectangle(8, 8, 40, 40)] * 4)
    logits = logits_of(torch.stack([rectangle(8, 8, 40, 8 + 8 * n) for n in range(1, 5)]), 3.0)
    features = torch.nn.functional.interpolate(truth[:, None].float(), scale_factor=0.25, mode="area").expand(
        -1, 4, -1, -1
    )
    head = ErrorHead(4)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        error_loss(head.error_logits(features, logits), logits, truth).mean().backward()
        optimizer.step()
    error = head(features, logits).detach()
    assert error.shape == logits.shape
    wrong = (logits > 0) != (features[:, :1] > 0.5)
    assert float(error[wrong].mean()) > 0.7
    assert float(error[~wrong].mean()) < 0.2


def test_the_error_head_leaves_the_mask_alone(monkeypatch):
    model = a_tiny_sam2(monkeypatch)
    head = ErrorHead(channels_of(model))
    plain = torch.randn(2, 32, 4, 4, requires_grad=True)
    high_res = [torch.randn(2, 4, 16, 16), torch.randn(2, 8, 8, 8)]
    with decoder_features(model) as seen:
        decoded = decode(model, plain, high_res)
    head(seen.features, decoded.logits).sum().backward()
    assert seen.features.shape == (2, channels_of(model), 16, 16)
    assert plain.grad is None
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_a_head_is_loaded_from_an_adapter_folder_refused_if_damaged_and_none_if_missing(monkeypatch, tmp_path):
    from safetensors.torch import save_file

    model = a_tiny_sam2(monkeypatch)
    assert load_error_head(tmp_path, model) is None
    head = ErrorHead(channels_of(model))
    save_file(head.state_dict(), tmp_path / ERROR_HEAD_FILE)
    loaded = load_error_head(tmp_path, model)
    assert all(a.equal(b) for a, b in zip(loaded.state_dict().values(), head.state_dict().values(), strict=True))
    save_file(ErrorHead(channels_of(model) + 1).state_dict(), tmp_path / ERROR_HEAD_FILE)
    with pytest.raises(ModelError, match="does not fit this model"):
        load_error_head(tmp_path, model)
    (tmp_path / ERROR_HEAD_FILE).write_bytes(b"nothing")
    with pytest.raises(ModelError, match="does not fit this model"):
        load_error_head(tmp_path, model)


# The step


def a_batch(images: int = 2) -> Regions:
    masks = [rectangle(4, 4, 28, 28), rectangle(30, 10, 60, 30), rectangle(20, 34, 60, 60)]
    owner = torch.tensor([0, 0, 1][: images + 1])
    pictures = torch.full((images, 3, S, S), -1.0)
    for mask, place in zip(masks, owner.tolist(), strict=True):
        pictures[place, :, mask] += 2.0
    keys = [(7, place, n) for n, place in enumerate(owner.tolist())]
    return Regions(pictures, torch.stack(masks), owner, torch.ones(images), keys)


def test_all_regions_and_behaviours_are_decoded_from_one_encoding(monkeypatch):
    model, calls = a_tiny_sam2(monkeypatch), []
    original = model.forward_image
    model.forward_image = lambda images: calls.append(len(images)) or original(images)
    outcome = phpg_step(model, ErrorHead(4), a_batch(), Prompting(per_region=2), 2, drawn_prompts=True)
    assert calls == [2]
    assert outcome.decodes == 3 * 2 * 3
    assert outcome.scores.shape == (3,)
    assert outcome.masks.shape == (3, 1, S // 4, S // 4)


def test_the_encoder_learns_through_round_0_alone(monkeypatch):
    grads = []
    for rounds in (0, 2):
        model = a_tiny_sam2(monkeypatch)
        prompting = Prompting(per_region=1, consistency=0.0)
        outcome = phpg_step(model, ErrorHead(4), a_batch(), prompting, rounds, drawn_prompts=True)
        (outcome.loss * (rounds + 1)).backward()  # the loss is the mean over rounds
        grads.append(next(model.image_encoder.parameters()).grad.clone())
    assert grads[0].abs().max() > 0
    assert torch.allclose(grads[0], grads[1], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("drawn", [True, False])
def test_a_small_network_learns_from_a_few_steps(monkeypatch, drawn):
    model = a_tiny_sam2(monkeypatch).train()
    head = ErrorHead(channels_of(model))
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=2e-3)
    losses = []
    for _ in range(12):
        outcome = phpg_step(model, head, a_batch(), Prompting(), 1, drawn_prompts=drawn)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        losses.append(float(outcome.loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_slice_gives_the_same_alone_as_in_a_batch(monkeypatch):
    model, head = a_tiny_sam2(monkeypatch), ErrorHead(4)
    both = a_batch()
    with torch.no_grad():
        whole = phpg_step(model, head, both, Prompting(), 2, drawn_prompts=True)
        parts = []
        for place in (0, 1):
            rows = both.owner == place
            keys = [key for key, own in zip(both.keys, rows.tolist(), strict=True) if own]
            part = Regions(
                both.images[place : place + 1],
                both.masks[rows],
                torch.zeros(len(keys), dtype=torch.long),
                torch.ones(1),
                keys,
            )
            parts.append(phpg_step(model, head, part, Prompting(), 2, drawn_prompts=True))
    assert torch.allclose(torch.stack([part.loss for part in parts]).mean(), whole.loss, atol=1e-5)
    assert torch.allclose(torch.cat([part.scores for part in parts]), whole.scores, atol=1e-5)
