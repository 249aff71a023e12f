"""Tell what licence a package says it has, and whether its words may be used with little more than a mention."""

from __future__ import annotations

import re
from importlib.metadata import Distribution

_PERMISSIVE = re.compile(r"Apache|BSD|MIT|ISC|Python Software Foundation|Biopython", re.IGNORECASE)
_COPYLEFT = re.compile(r"GPL|MPL|Mozilla|GNU|EPL|EUPL", re.IGNORECASE)


def licence_of(distribution: Distribution) -> str:
    """Return the licence in a package's metadata: its expression, its classifiers or the first line of the field."""
    of = distribution.metadata.get_all
    classifiers = [line for line in of("Classifier") or [] if line.startswith("License")]
    named = "; ".join(line.split(" :: ")[-1] for line in classifiers)
    first_of = [*(of("License-Expression") or []), named, *(of("License") or [])]
    return next((licence.split("\n")[0] for licence in first_of if licence), "")


def is_permissive(licence: str) -> bool:
    """Return whether all that is named is a licence without copyleft."""
    return bool(_PERMISSIVE.search(licence)) and not _COPYLEFT.search(licence)
