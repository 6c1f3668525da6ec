"""Formats of JSON strings as regular expressions: all they match is valid, though not all that is valid matches."""

_HEX = "[0-9a-fA-F]"
_MONTHS = r"(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
_LEAP_YEAR = r"(?:[1-9]\d(?:0[48]|[2468][048]|[13579][26])|(?:1[26]|[2468][048]|[3579][26])00)"
_DATE = rf"(?:[1-9]\d{{3}}-{_MONTHS}|{_LEAP_YEAR}-02-29)"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:0\d|1[0-4]):[0-5]\d)"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?"
_HOST = rf"(?:{_LABEL}\.){{1,4}}[a-z]{{2,10}}"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_EMAIL = rf"[A-Za-z0-9_+-]{{1,24}}(?:\.[A-Za-z0-9_+-]{{1,24}}){{0,2}}@{_HOST}"
_URI = rf"https?://{_HOST}(?:/[A-Za-z0-9._~-]{{1,40}}){{0,8}}/?"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": r"P(?:\d{1,4}D(?:T\d{1,2}H)?|\d{1,3}W|T\d{1,4}[HMS]|T\d{1,2}H\d{1,2}M(?:\d{1,2}S)?)",
    "uuid": f"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "hostname": _HOST,
    "idn-hostname": _HOST,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": rf"(?:{_HEX}{{1,4}}:){{7}}{_HEX}{{1,4}}",
    "uri": _URI,
    "uri-reference": _URI,
    "iri": _URI,
}
"""Regular expressions, by the format's name."""
