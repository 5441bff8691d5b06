"""Who works on what."""

import pytest

from ospnext_ms.post_training.shares import check_evaluation, check_shares, prompts_of_iteration, share


def test_every_epoch_has_every_prompt_once():
    order = [p for i in range(9) for p in prompts_of_iteration(i, 4, 12, 0)]
    epochs = [order[i : i + 12] for i in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert prompts_of_iteration(5, 4, 12, 0) == order[20:24]


@pytest.mark.parametrize(("prompts", "size", "data"), [(8, 4, 2), (2, 8, 8), (1, 6, 3)])
def test_videos_that_can_be_shared(prompts, size, data):
    check_shares(prompts, size, data)
    assert sorted(v for rank in range(data) for v in share(prompts * size, rank, data)) == list(range(prompts * size))


def test_videos_that_cannot_be_shared():
    with pytest.raises(ValueError, match=r"rollout.prompts is 3.*valid numbers of prompts: 1, 2, 4"):
        check_shares(3, 8, 4)


def test_an_evaluation_is_shared_equally():
    check_evaluation(4, 2)
    with pytest.raises(ValueError, match="evaluation.count is 3; it must be a multiple of the 2 data-parallel groups"):
        check_evaluation(3, 2)
