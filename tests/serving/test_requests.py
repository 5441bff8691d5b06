"""What a client may ask for."""

import math
import re

import pytest

from ospnext_ms.config.checks import ConfigError
from ospnext_ms.serving.requests import config_of, job_of, read_request


def test_what_is_left_out_is_the_servers(configure):
    config = configure(sizes=[[64, 96]], adapters=[{"name": "night", "path": "some/where", "strength": 0.5}])
    settings = read_request({"prompt": "a 3"}, config)
    assert settings == {"prompt": "a 3", "negative_prompt": "", "seed": 0, "steps": 20, "guidance": 3.0,
                        "size": "128x128", "frames": 17, "fps": 8, "adapter": None}
    assert config_of(settings, config).used_adapters == []
    asked = {"prompt": "a 3", "seed": 7, "steps": 5, "guidance": 1, "size": "64x96", "seconds": 1.1,
             "adapter": "night", "negative_prompt": "grey"}
    settings = read_request(asked, config)
    made = config_of(settings, config)
    assert (made.video.width, made.video.height, made.video.frames) == (64, 96, 9)
    assert (made.sampling.seed, made.sampling.steps, made.sampling.guidance) == (7, 5, 1)
    assert made.used_adapters == [("some/where", 0.5)]
    job = job_of(settings, made, "video_1")
    assert (job.prompt, job.seed, job.negative_prompt) == ("a 3", 7, None)


def test_what_the_page_sends_where_nothing_is_chosen(configure):
    request = {"prompt": "a 3", "negative_prompt": "", "adapter": "", "model": ""}
    assert read_request(request, configure())["adapter"] is None


def test_an_adapter_that_is_served_no_longer(configure):
    config = configure(adapters=[{"name": "night", "path": "some/where", "strength": 0.5}])
    settings = read_request({"prompt": "a 3", "adapter": "night"}, config)
    with pytest.raises(ValueError, match="the adapter 'night' is no longer served"):
        config_of(settings, configure())


def test_a_drawn_seed_is_told(configure):
    seeds = {read_request({"prompt": "a", "seed": -1}, configure())["seed"] for _ in range(4)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(("changes", "words"), [
    ({"prompt": 1}, "prompt: the number 1 is not a text"),
    ({"prompt": " "}, "prompt is empty"),
    ({"prompt": "a" * 2001}, "prompt has 2001 characters; at most 2000"),
    ({"prompt": "a\0"}, "prompt holds characters that are none"),
    ({"prompt": "\ud800"}, "prompt holds characters that are none"),
    ({"steps": -1}, "steps is -1; it must be at least 1"),
    ({"steps": 101}, "steps is 101; it must be at most 100"),
    ({"steps": 2.5}, "steps: the number 2.5 is not a whole number"),
    ({"steps": True}, "steps: the truth value True is not a whole number"),
    ({"guidance": math.nan}, "guidance: the number nan is not"),
    ({"guidance": 0.5}, "guidance is 0.5; it must be at least 1"),
    ({"seed": 2**32}, "seed is 4294967296; it must be from -1"),
    ({"size": "-128x128"}, "size is '-128x128'; it must be one of 128x128"),
    ({"size": "4096x4096"}, "it must be one of 128x128"),
    ({"frames": 16}, "frames is 16"),
    ({"frames": 21}, "frames is 21 (2.62 seconds); it must be at most 17"),
    ({"seconds": 1e9}, "it must be at most 17"),
    ({"seconds": 2, "frames": 9}, "give seconds or frames, not both"),
    ({"adapter": "../../secret"}, "adapter is '../../secret'; this server has none"),
    ({"output_dir": "/"}, "unknown key 'output_dir'"),
])
def test_refused_in_one_line(configure, changes, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        read_request({"prompt": "a 3"} | changes, configure())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("values", "words"), [
    ({"address": "0.0.0.0"}, "which others reach too; give a token"),
    ({"address": "example.org"}, "which others reach too; give a token"),
    ({"token": "short"}, "token is shorter than 16 characters"),
    ({"token": "a token; Path=/elsewhere"}, "token may hold letters, digits"),
    ({"port": 70000}, "port is 70000"),
    ({"queue": 0}, "queue is 0; it must be at least 1"),
    ({"sizes": [[100, 128]]}, "video.width is 100"),
    ({"adapters": [{"name": "a", "path": "b"}, {"name": "a", "path": "c"}]}, "names must differ"),
])
def test_configurations_that_cannot_be(configure, values, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        configure(**values)


def test_addresses_of_this_machine_need_no_token(configure):
    assert all(configure(address=address).serve.is_loopback for address in ("127.0.0.1", "::1", "localhost"))
    assert not configure(address="0.0.0.0", token="x" * 16).serve.is_loopback
