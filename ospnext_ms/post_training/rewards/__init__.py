"""Rewards: what scores a video, and the processes they run in.

A reward is named in YAML as `package.module:name`, a class or function that is called once with the section's
`arguments` and returns the scorer:

    scorer(frames, prompts) -> (scores, parts)

with frames uint8 [B, F, H, W, 3], prompts a list of B texts, scores B numbers (larger is better), and parts a dict
{name: B numbers} of what they are made of, to be logged.
"""
