"""Reinforcement post-training of adapters by Mix-GRPO: rollout, rewards, advantages, policy update."""
