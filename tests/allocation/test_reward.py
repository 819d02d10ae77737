"""EVATok's proxy reward: its constants, its sign, and that it is a price in disguise."""

import numpy as np
import pytest

from adaptok_hf.allocation import assignments, proxy_reward, reward_percentile, reward_price

LEVELS = (32, 64, 128, 256, 512)


def test_assignments_and_their_lengths():
    every = assignments(LEVELS, 4)
    assert every.shape == (625, 4) and every[:6, -1].tolist() == [32, 64, 128, 256, 512, 32]
    assert every.sum(1).mean() == pytest.approx(793.6) and every.sum(1).std() == pytest.approx(349.137, abs=1e-3)
    with pytest.raises(ValueError, match="15625"):
        assignments(LEVELS, 6)


def test_better_pictures_and_fewer_tokens_are_worth_more():
    losses, tokens = np.array([[0.1, 0.3], [0.2, 0.4]]), np.array([100, 100.5])
    assert (np.diff(proxy_reward(losses, tokens, quality_weight=1.9)) < 0).all()
    equal = proxy_reward(np.array([[0.2, 0.2], [0.3, 0.3]]), np.array([100, 200]))
    assert (np.diff(equal) < 0).all()
    with pytest.raises(ValueError, match="2.5"):
        proxy_reward(losses, tokens, quality_weight=2.5)


@pytest.mark.parametrize("weight", [0.8, 1.2, 1.6])
def test_the_highest_reward_has_the_lowest_loss_at_the_price(weight):
    losses, tokens = np.random.default_rng(0).random((50, 625)), assignments(LEVELS, 4).sum(1)
    price = reward_price(weight, losses.std(), tokens.std())
    by_reward = proxy_reward(losses, tokens, weight).argmax(1)
    assert (by_reward == (losses + price * tokens).argmin(1)).all()
    assert reward_price(weight, 1.0, 349.137) == pytest.approx(
        {0.8: 0.004296, 1.2: 0.001909, 1.6: 0.000716}[weight], abs=1e-6
    )


def test_percentile_of_a_table_made_by_hand():
    rewards = [[0, 1, 2, 4], [4, 0, 1, 3]]
    assert reward_percentile(rewards, [3, 0]) == 100 and reward_percentile(rewards, [0, 1]) == 0
    assert reward_percentile(rewards, [2, 3]) == pytest.approx(100 * (2.5 - 0) / 4)
