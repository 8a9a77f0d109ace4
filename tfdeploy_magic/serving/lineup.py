"""Which versions of a model are served, what they are called, and who answers those that name none.

A lineup is plain data: it says what is wanted, becomes the next one, and remembers the one before. What it asks of a
server is a ``ModelConfig`` that TensorFlow Serving understands too, and for a split the arms of our own router.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tfdeploy_magic.errors import InputError, NameNotFound

STABLE, CANARY = "stable", "canary"
"""What the version that people rely on is called, and the one on trial: the names in TensorFlow's guide."""

Shares = tuple[tuple[str | None, float], ...]
"""What a person wrote of a split: names, where there are some, and shares that add up to 1."""


@dataclass(frozen=True)
class Arm:
    """One side of a split.

    Args:
        name: What it is called in metrics and outcomes: its label, its version, or its model.
        share: Of the requests, above 0 and at most 1; those of a split add up to 1.
        model: Whose version answers.
        version: Which; None where a label says it, or the newest is meant.
        label: Of the version that answers.
    """

    name: str
    share: float
    model: str
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class Lineup:
    """What is served of one model.

    Args:
        keep: Versions that stay loaded: the newest ones.
        newest: The highest version that counts among those; None where that is whatever is newest on disk.
        labels: Label -> version.
        split: Who answers requests that name no version and no label; the highest version where empty.
        before: What was served before the last change.
    """

    keep: int = 1
    newest: int | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    split: tuple[Arm, ...] = ()
    before: Lineup | None = None

    def versions(self, found: Iterable[int]) -> tuple[int, ...]:
        """Return the versions that are to be loaded, of those on disk, in increasing order."""
        there = sorted(found)
        counting = [number for number in there if self.newest is None or number <= self.newest]
        return tuple(number for number in there if number in counting[-self.keep :] or number in self._named)

    @property
    def _named(self) -> set[int]:
        """The versions that are loaded whether they are new or not."""
        return {*self.labels.values(), *(arm.version for arm in self.split if arm.version is not None)}

    @property
    def followed(self) -> bool:
        """Whether a server finds out by itself which versions these are: the newest, as they come."""
        return self.newest is None and not self._named

    def config(self, name: str, base_path: str | Path, found: Iterable[int]) -> Any:
        """Return the ``ModelConfig`` that serves these versions by these labels.

        Args:
            name: What clients call the model.
            base_path: Where the server sees its versions.
            found: The versions on disk.
        """
        if not self.followed:
            return specific_config(name, base_path, self.versions(found), self.labels)
        config = _config(name, base_path)
        if self.keep > 1:
            config.model_version_policy.latest.num_versions = self.keep
        return config

    # What it becomes

    def with_version(self, number: int, *, latest: int | None, label: str | None, keep: int | None = None) -> Lineup:
        """Return the lineup with a version that has just been written.

        Args:
            number: The new version.
            latest: What answered before it those who name no version; None where it is the first.
            label: What it is to be called. The version before becomes ``stable`` where nothing has a label yet.
            keep: Versions that stay loaded from now on.
        """
        labels = dict(self.labels)
        if label is not None:
            if not labels and latest is not None and label != STABLE:
                labels[STABLE] = latest
            labels[label] = number
        before = replace(self, newest=latest) if latest is not None else None
        return replace(self, keep=keep or self.keep, newest=None, labels=labels, before=before)

    def with_split(self, split: tuple[Arm, ...]) -> Lineup:
        """Return the lineup with other arms, before this one when nothing else has changed."""
        return replace(self, split=split, before=self)

    def promoted(self, name: str, what: str | None, found: Iterable[int]) -> Lineup:
        """Return the lineup where one arm, label or version answers all requests that name none.

        The label ``stable`` goes to it where there are labels, and its own label goes away.

        Args:
            name: The model's.
            what: An arm, a label or the number of a version; the arm, or the label, on trial when None.
            found: The versions on disk.

        Raises:
            InputError: Nothing is on trial, or there are several.
            NameNotFound: There is no such arm, label or version.
        """
        there = sorted(found)
        arm = self._arm(name, what, there)
        if arm.model != name:
            return replace(self, split=(replace(arm, share=1.0),), before=self)
        number = (
            arm.version
            if arm.version is not None
            else self.labels[arm.label]
            if arm.label
            else max(self.versions(there))
        )
        labels = {label: version for label, version in self.labels.items() if label != arm.label}
        if self.labels:
            labels[STABLE] = number
        newest = None if number == there[-1] else number
        return replace(self, newest=newest, labels=labels, split=(), before=self)

    def rolled_back(self, name: str) -> Lineup:
        """Return what was served before the last change.

        Raises:
            InputError: Nothing was.
        """
        if self.before is None:
            raise InputError(
                f"{name} cannot be rolled back",
                found="nothing that was served before",
                wanted="an earlier version, label or split",
                cure="%serve --promote NAME VERSION serves any version that is on disk.",
            )
        return self.before

    def back_to(self, later: Lineup) -> Lineup:
        """Return this lineup as it is to be served after a later one, whose newest version must not come back."""
        return replace(self, newest=later.before.newest) if later.before is not None else self

    def _arm(self, name: str, what: str | None, found: Sequence[int]) -> Arm:
        on_trial = {arm.name: arm for arm in self.split[1:]}
        arms = {arm.name: arm for arm in self.split}
        if not self.split:
            arms = {label: Arm(label, 1.0, name, label=label) for label in self.labels}
            on_trial = {label: arm for label, arm in arms.items() if label != STABLE}
        if what is None and len(on_trial) != 1:
            raise InputError(
                f"it is not clear what of {name} to promote",
                found=", ".join(on_trial) or "no split, and no label but stable",
                wanted="one arm, label or version",
                cure=f"Name it: %serve --promote {name} {next(iter(on_trial), found[-1])}.",
            )
        if what is None:
            return next(iter(on_trial.values()))
        if what not in arms and what.isdecimal() and int(what) in found:
            return Arm(what, 1.0, name, version=int(what))
        if what not in arms:
            raise NameNotFound(
                f"'{what}' of {name}",
                found="no such arm, label or version",
                wanted=f"one of {', '.join([*arms, *map(str, found)])}",
                cure="%serve --list shows what is served.",
            )
        return arms[what]


def specific_config(name: str, base_path: str | Path, versions: Iterable[int], labels: Mapping[str, int]) -> Any:
    """Return the ``ModelConfig`` that serves certain versions."""
    config = _config(name, base_path)
    config.model_version_policy.specific.versions.extend(versions)
    for label, number in sorted(labels.items()):
        config.version_labels[label] = number
    return config


def _config(name: str, base_path: str | Path) -> Any:
    from tfdeploy_magic.serving.configs import single_model_config

    return single_model_config(name, str(base_path)).model_config_list.config[0]


def shares_of(text: str) -> Shares:
    """Read a split: "90/10", or with names "stable=90,canary=10".

    Raises:
        ValueError: It is none, or does not add up to 100.
    """
    named = "=" in text
    parts = re.split(r"\s*[,/]\s*", text.strip())
    read: list[tuple[str | None, float]] = []
    for part in parts:
        name, _, number = part.rpartition("=")
        if not re.fullmatch(r"\d+(\.\d+)?\s*%?", number.strip()) or bool(name) is not named:
            raise ValueError(f"'{part}' is no share; write 90/10, or stable=90,canary=10")
        read.append((name.strip() or None, float(number.strip(" %"))))
    total = sum(share for _, share in read)
    if not math.isclose(total, 100, abs_tol=1e-6):
        raise ValueError(f"the shares add up to {total:g} and not to 100; write 90/10, or stable=90,canary=10")
    if len(read) < 2 or any(share == 0 for _, share in read):
        raise ValueError("a split has at least two shares above 0; write 90/10, or stable=90,canary=10")
    if named and len({name for name, _ in read}) < len(read):
        raise ValueError("a name stands there twice")
    return tuple((name, share / 100) for name, share in read)


def arms_of(
    shares: Shares, model: str, known: Sequence[Arm], *, labels: Mapping[str, int], found: Iterable[int]
) -> tuple[Arm, ...]:
    """Return the arms that shares mean.

    Args:
        shares: What the person wrote.
        model: The model whose requests are split.
        known: Who is meant, in this order, where no names were written: arms whose shares do not count.
        labels: Of the model, label -> version.
        found: Its versions on disk.

    Raises:
        InputError: There are more or fewer shares than arms.
        NameNotFound: A name is no label, version or model.
    """
    there = set(found)
    by_name = {arm.name: arm for arm in known}
    if shares[0][0] is None:
        if len(shares) != len(known):
            raise InputError(
                f"{model} cannot be split like this",
                found=f"{len(shares)} shares for {', '.join(by_name) or 'one version'}",
                wanted=f"{len(known)} shares" if len(known) > 1 else "something to split with",
                cure="Serve two models, or a version beside the one that is served: --label canary --split 90/10.",
            )
        return tuple(replace(arm, share=share) for arm, (_, share) in zip(known, shares, strict=True))
    arms = []
    for name, share in shares:
        assert name is not None
        if name in by_name:
            arms.append(replace(by_name[name], share=share))
        elif name in labels:
            arms.append(Arm(name, share, model, label=name))
        elif name.isdecimal() and int(name) in there:
            arms.append(Arm(name, share, model, version=int(name)))
        else:
            raise NameNotFound(
                f"'{name}' cannot have a share of {model}",
                found="no version of that number, and no label or model of that name",
                wanted=f"one of {', '.join([*by_name, *labels, *map(str, sorted(there))])}",
                cure="%serve MODEL --label NAME serves a version by a label.",
            )
    order = list(by_name)
    if by_name.keys() >= {arm.name for arm in arms}:  # those who have a key keep their arm, as many as can
        arms.sort(key=lambda arm: order.index(arm.name))
    return tuple(arms)
