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
        """Contents of the configs."""
        self.ckpt_path: str | None = None
        """The checkpoint that is named last, by the option or in a config."""
        rest = iter(words)
        for word in rest:
            flag, equals, value = word.partition("=")
            if re.match("-c[^=]", word):
                flag, equals, value = "-c", "=", word[2:]
            if flag not in ("-c", "--config", "--ckpt_path"):
                self.words.append(word)
            elif equals or (value := next(rest, "")):
                self._add(flag, value)
            else:  # the parser misses the value
                self.words.append(flag)
        # a class that is named later would keep the defaults of the one before
        method = self._method()
        self._first = [] if method is None else ["--model", method]
        self.words[1:1] = self._first

    def _add(self, flag: str, value: str) -> None:
        if flag == "--ckpt_path":
            self.words += [flag, value]
            self.ckpt_path = None if value == "null" else value
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
            named = content["ckpt_path"]
            self.ckpt_path = None if named is None else str(named)

    def _method(self) -> str | None:
        """The class of the method that is named last, by the option or in a config."""
        found = None
        for flag, value in pairwise([*self.words, ""]):
            option, equals, given = flag.partition("=")
            if option in ("--model", "--model.class_path"):
                found = given if equals else value
            elif flag == "--config":
                config = yaml.safe_load(value)
                model = config.get("model") if isinstance(config, dict) else None
                named = model.get("class_path") if isinstance(model, dict) else model
                found = named if isinstance(named, str) else found
        return found

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
        rest = self.words[1 + len(self._first) :]
        return [self.words[0], *self._first, "--config", yaml.safe_dump(config), *rest]

    def _appended(self) -> set[str]:
        names = [word.partition("=")[0][2:] for word in self.words if word.startswith("--")]
        for config in self.configs.values():
            names += flatten(config)
        return {name.partition("+")[0] for name in names if "+" in name}
