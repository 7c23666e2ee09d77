"""Names of people, to be told apart by their language."""

import importlib
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .access import imports
from .dataset import DataError, Dataset

# A language each, all of them in Latin letters.
LOCALES = (
    *("de_DE", "es_ES", "fi_FI", "fr_FR", "hr_HR"),
    *("it_IT", "nl_NL", "sk_SK", "sv_SE", "tr_TR"),
)
# What is left of a name: no accents, no capitals.
ALPHABET = "abcdefghijklmnopqrstuvwxyz '-"
# Letters that are not one of these with an accent.
LETTERS = str.maketrans({"ß": "ss", "æ": "ae", "ø": "o", "đ": "d", "ł": "l", "ı": "i"})
# Longer names, one in 200, are left out.
LONGEST = 16
# One name of each language in so many is for testing.
TEST_SHARE = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Names(Dataset):
    """Names as a data set whose "images" have a row for each character, and one label each.

    An image in memory is a row of numbers: 0 where the name is over, and from 1 on a place in the
    alphabet.

    Attributes:
      languages: of the labels, in their order.
    """

    languages: tuple[str, ...]
    unit: str = "names"

    @property
    def image_shape(self) -> tuple[int, int]:
        """Characters of a name at most, and of the alphabet."""
        return LONGEST, len(ALPHABET)

    def standardise(self, images: Any, input_norm: bool = True) -> Any:
        """Characters as float32 vectors with a single 1, which is at its place in the alphabet.

        Those behind the end of a name are all zeros.
        """
        del input_norm
        return (images[..., None] == np.arange(1, len(ALPHABET) + 1)).astype(np.float32)


def person_names(folder: Path | None) -> Names:
    """First and last names from ten countries, as the package Faker has them.

    Raises:
      DataError: if a folder is given, or Faker is not installed.
    """
    if folder is not None:
        raise DataError("the names come with Faker and take no data folder")
    with imports("names", "names"):
        providers = {
            locale[:2]: importlib.import_module(f"faker.providers.person.{locale}").Provider
            for locale in LOCALES
        }
    return by_language(
        {
            language: {*provider.first_names, *provider.last_names}
            for language, provider in providers.items()
        }
    )


def by_language(known: Mapping[str, Collection[str]]) -> Names:
    """Makes a data set of the names of each language.

    They are folded to the alphabet. A name that is then found in several languages is left out of
    all, and so is one that is too long. The split into names to train and to test on depends on the
    names alone.
    """
    folded = {language: set(map(fold, own)) for language, own in known.items()}
    languages_of = Counter(name for own in folded.values() for name in own)
    train, test = [], []
    for label, own in enumerate(folded.values()):
        only = sorted(n for n in own if languages_of[n] == 1 and 0 < len(n) <= LONGEST)
        for place, n in enumerate(np.random.default_rng(0).permutation(len(only))):
            (train if place % TEST_SHARE else test).append((only[n], label))
    (train_images, train_labels), (test_images, test_labels) = map(_as_arrays, (train, test))
    return Names(
        name="names",
        classes=len(known),
        mean=np.zeros(1, np.float32),
        std=np.ones(1, np.float32),
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        languages=tuple(known),
    )


def fold(name: str) -> str:
    """Returns a name in characters of the alphabet: small letters without accents.

    What is no letter, space, hyphen or apostrophe is left out.
    """
    apart = unicodedata.normalize("NFKD", name.lower().translate(LETTERS))
    return "".join(character for character in apart if character in ALPHABET).strip(" '-")


def _as_arrays(named: Sequence[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    images = np.zeros((len(named), LONGEST), np.uint8)
    for row, (name, _) in zip(images, named, strict=True):
        row[: len(name)] = [1 + ALPHABET.index(character) for character in name]
    return images, np.array([label for _, label in named], np.int32)
