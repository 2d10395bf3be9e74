"""Which language a text is in, for a handful of languages: by its script, then by its commonest words.

No model and no dependency. "unknown" is an answer: the text is short, mixed, or in a language that is not listed.
"""

from __future__ import annotations

import re
from typing import Final

from factory.constraints.answer import find_words

UNKNOWN: Final = "unknown"
READ: Final = 20_000  # characters read; the rest does not change the answer

NAMES: Final = {
    "ar": "Arabic", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "fr": "French", "he": "Hebrew",
    "hi": "Hindi", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pt": "Portuguese",
    "ru": "Russian", "sv": "Swedish", "th": "Thai", "uk": "Ukrainian", "zh": "Chinese",
}  # fmt: skip


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOP_WORDS: Final[dict[str, frozenset[str]]] = {
    "en": _set(
        """a about after all also an and any are as at be because been before but by can could did do does each few for
        from had has have having he her here him his how i if in into is it it's its just like me more most my no nor
        not now of off on one only or other our out over own she should so some such than that the their them then
        there these they this those through to too under up very was we were what when where which while who whom why
        will with would you your"""
    ),
    "es": _set(
        """a al como con cuando de del desde donde e el ella ellos en entre era es esta este esto fue ha hay la las le
        lo los más me mi mucho muy no nos o para pero por porque que qué se ser si sin sobre son su sus también te
        tiene todo un una uno y ya"""
    ),
    "fr": _set(
        """à au aussi aux avec ce ces cette comme dans de des du elle en est et être il ils je la le
        les leur lui mais me même ne nous on ou où par pas plus pour que qui sa se ses si son sont sur te
        tout très tu un une vous y"""
    ),
    "de": _set(
        """aber als am an auch auf aus bei bin bis das dass dem den der des die doch du durch ein eine einem einen einer
        er es für hat ich ihr im in ist ja kann man mehr mit nach nicht noch nur oder sehr sein sich sie sind so über
        um und uns unter vom von vor war was wenn werden wie wir wird zu zum zur"""
    ),
    "it": _set(
        """a ad ai al alla anche che chi ci come con cui da dal dalla dei del della delle di e è ed essere gli ha ho i
        il in io la le lo loro ma mi molto nel nella non o per perché più quando questa questo se si sono su sua suo
        te ti tra un una uno"""
    ),
    "pt": _set(
        """a ao aos as até com como da das de do dos e é ela ele em entre era essa esse esta este eu foi há isso já
        mais mas me mesmo muito na não nas no nos o os ou para pela pelo por porque quando que quem se sem ser seu sua
        são também tem um uma você"""
    ),
    "nl": _set(
        """aan al als bij dat de deze die dit door een en er haar hebben heeft het hij hun ik in is je kan maar me met
        mijn naar niet nog nu of om ook op over te tot uit van veel voor waar was wat we wordt worden ze zich zij zijn
        zo zou"""
    ),
    "sv": _set(
        """alla än är att av blir de den det dig din du efter ej en ett från för ha hade han har hon i inte jag kan man
        med men mer mig min mycket när nu och om på så sig sin ska som till under upp var vi vid vill"""
    ),
    "ru": _set(
        """а без бы был была были было быть в вы где да для до его ее её если есть ещё и из или их к как когда кто ли мы
        на не него но о об он она они от очень по при с со так также то только у уже что чтобы это этот я"""
    ),
    "uk": _set(
        """а або але без був була були бути в ви від він вона вони для до є же з за й його її і із їх коли ми на не
        ні о по при про та так також те тільки то у усе це цей чи що щоб як якщо я"""
    ),
}

# Letters of one script, and the language of a script that only one listed language uses.
_SCRIPTS: Final[dict[str, re.Pattern[str]]] = {
    "latin": re.compile(r"[A-Za-z\u00aa-\u024f\u1e00-\u1eff]"),
    "cyrillic": re.compile(r"[\u0400-\u052f]"),
    "kana": re.compile(r"[\u3040-\u30ff]"),
    "zh": re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]"),
    "ko": re.compile(r"[\uac00-\ud7af\u1100-\u11ff]"),
    "ar": re.compile(r"[\u0620-\u064a\u0671-\u06d3]"),
    "he": re.compile(r"[\u05d0-\u05ea]"),
    "el": re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]"),
    "hi": re.compile(r"[\u0904-\u0939]"),
    "th": re.compile(r"[\u0e01-\u0e30]"),
}
_PERSIAN_OR_URDU: Final = re.compile(r"[\u067e\u0686\u0698\u06af\u0679\u0688\u0691\u06d2]")
_BY_WORDS: Final = {
    "latin": ("en", "es", "fr", "de", "it", "pt", "nl", "sv"),
    "cyrillic": ("ru", "uk"),
}
_ELISION: Final = re.compile(r"(?<![^\W\d_])(?:[cdjlmnst]|qu|dell|nell|all|un|l)['’](?=[^\W\d_])")


def guess(text: str) -> str:
    """The code of the language that the text is in, or "unknown"."""
    text = text[:READ]
    letters = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
    letters["zh"] += letters["kana"]
    kana = letters.pop("kana")
    script = max(letters, key=lambda name: letters[name])
    if letters[script] < 2 or letters[script] < 0.7 * sum(letters.values()):
        return UNKNOWN
    if script in _BY_WORDS:
        return _by_words(text, _BY_WORDS[script])
    if script == "zh" and kana > 0.1 * letters["zh"]:
        return "ja"
    if script == "ar" and _PERSIAN_OR_URDU.search(text):
        return UNKNOWN
    return script


def _by_words(text: str, languages: tuple[str, ...]) -> str:
    """The language whose common words are at least an eighth of the text, and clearly more than any other's."""
    words = find_words(_ELISION.sub(" ", text.casefold()))
    hits = {code: sum(word in STOP_WORDS[code] for word in words) for code in languages}
    first, second = sorted(languages, key=lambda code: hits[code], reverse=True)[:2]
    few = hits[first] < max(2, len(words) / 8)
    return UNKNOWN if few or hits[first] < 1.25 * hits[second] else first
