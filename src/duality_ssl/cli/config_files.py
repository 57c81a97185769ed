"""The words of a command line, with each of its configs read once."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from duality_ssl.registry import did_you_mean, named_modules
from duality_ssl.runs.config import Config, read_config, without
from duality_ssl.runs.resume import flatten


class CommandLine:
    """What the user typed, with the content of each config in place of its name.

    Args:
        words: The words after ``duality-ssl``.

    Raises:
        ValueError: If a config does not exist, or is not valid.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words: list[str] = []
        """For the parser."""
        self.configs: dict[Path, Config] = {}
        self.ckpt_path: str | None = None
        """The checkpoint that is named last, by the option or in a config."""
        self._method: list[str] = []
        rest = iter(words)
        for word in rest:
            flag, equals, value = word.partition("=")
            if re.match("-c[^=]", word):
                flag, equals, value = "-c", "=", word[2:]
            if flag not in ("-c", "--config", "--ckpt_path", "--model", "--model.class_path"):
                self.words.append(word)
            elif equals or (value := next(rest, "")):
                self._add(flag, value)
            else:  # the parser misses the value
                self.words.append(flag)
        # before all others: a class that follows another one would get that one's defaults
        self.words[1:1] = self._method

    def _add(self, flag: str, value: str) -> None:
        if flag not in ("-c", "--config"):
            self.words += [flag, value]
            if flag == "--ckpt_path":
                self.ckpt_path = None if value == "null" else value
            else:
                self._method = ["--model", value]
            return
        path = Path(value)
        if not path.is_file():
            others = [*Path("configs").glob("*/*.yaml"), *path.parent.glob("*.yaml")]
            hint = did_you_mean(value, map(str, others))
            hint = " It is a folder: name a file in it." if path.is_dir() else hint
            raise ValueError(f"There is no config {path}.{hint}")
        text, content = read_config(path)
        self.words += ["--config", text]
        self.configs[path] = content
        if "ckpt_path" in content:
            checkpoint = content["ckpt_path"]
            self.ckpt_path = None if checkpoint is None else str(checkpoint)
        model = content.get("model")
        named = model.get("class_path") if isinstance(model, dict) else model
        if isinstance(named, str):
            self._method = ["--model", named]

    def modules(self) -> set[str]:
        """Modules of the classes and functions that the user names."""
        words = [word for flag, word in pairwise(["", *self.words]) if flag != "--config"]
        return named_modules([*words, *self.configs.values()])

    def over(self, config: Config | None) -> list[str]:
        """The words with the config of a run before all others.

        A list that the words append to (``--trainer.callbacks+``) begins without the run's.
        """
        if config is None:
            return self.words
        for name in self._appended():
            config = without(config, name.split("."))
        first = 1 + len(self._method)
        return [*self.words[:first], "--config", yaml.safe_dump(config), *self.words[first:]]

    def _appended(self) -> set[str]:
        names = [word.partition("=")[0][2:] for word in self.words if word.startswith("--")]
        names += [name for config in self.configs.values() for name in flatten(config)]
        return {name.partition("+")[0] for name in names if "+" in name}
