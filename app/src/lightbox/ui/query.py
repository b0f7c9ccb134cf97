"""What the results page shows is said by its address alone, so that it can be kept, shared and gone back to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from urllib.parse import urlencode

# Columns that can be sorted by, and the order a first click gives.
COLUMNS = {"filename": "asc", "label": "asc", "confidence": "desc", "created": "desc"}
CHOICES = {"source": ("", "upload", "batch"), "feedback": ("", "any", "none", "agree", "disagree"),
           "sort": tuple(COLUMNS), "order": ("asc", "desc")}  # fmt: skip
LONGEST = 200


@dataclass(frozen=True)
class Query:
    """Filters, order and page of the results; empty texts filter nothing."""

    page: str = "1"
    verdict: str = ""
    search: str = ""
    source: str = ""
    feedback: str = ""
    sort: str = "created"
    order: str = "desc"

    @classmethod
    def read(cls, given: Mapping[str, str]) -> Query:
        """Return the query in the parameters of an address; choices that do not exist are left at their default."""
        values = {}
        for field in fields(cls):
            value = given.get(field.name, "").strip()[:LONGEST]
            if value and (field.name not in CHOICES or value in CHOICES[field.name]):
                values[field.name] = value
        if "sort" in values and "order" not in values:
            values["order"] = COLUMNS[values["sort"]]
        return cls(**values)

    @property
    def filtered(self) -> bool:
        """Whether any case is left out."""
        return bool(self.verdict or self.search or self.source or self.feedback)

    def parameters(self, page: bool = True) -> dict[str, str]:
        """Return the parameters that the API takes."""
        return {name: value for name, value in asdict(self).items() if value and (page or name != "page")}

    def address(self, path: str = "/", **changes: str) -> str:
        """Return the address that shows a changed query; what is as usual is not in it.

        A change of anything but the page leads to the first page.
        """
        changed = replace(self, **{"page": "1", **changes})
        plain = asdict(Query())
        parts = {name: value for name, value in asdict(changed).items() if value != plain[name]}
        if changed.sort != "created" and changed.order == COLUMNS[changed.sort]:
            parts.pop("order", None)
        elif changed.sort != "created":
            parts["order"] = changed.order
        return f"{path}?{urlencode(parts)}" if parts else path

    @property
    def here(self) -> str:
        """The address that shows this query, with its page."""
        return self.address(page=self.page)

    def cleared(self) -> str:
        """Return the address without filters, in the same order."""
        return Query(sort=self.sort, order=self.order).address()

    def turned(self, column: str) -> str:
        """Return the address that sorts by a column, or turns its order round."""
        usual = COLUMNS[column]
        order = usual if column != self.sort else "asc" if self.order == "desc" else "desc"
        return self.address(sort=column, order=order)
