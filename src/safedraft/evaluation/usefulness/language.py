"""Tells in which of nine languages a text is, by its script and its most frequent words.

The languages are those that SafeDraft is evaluated in. A few words are enough where they include an
article or a pronoun; a text without any has no language. Texts in other languages are taken for
none of the nine, or for a close relative.
"""

from __future__ import annotations

import re
from collections import Counter

LANGUAGES = ("en", "es", "fr", "pt", "de", "it", "ru", "zh", "ja")
"""ISO 639-1 codes."""

_SCRIPTS = {
    "kana": re.compile(r"[\u3040-\u30ff]"),
    "han": re.compile(r"[\u3400-\u9fff]"),
    "cyrillic": re.compile(r"[\u0400-\u04ff]"),
    "latin": re.compile(r"[A-Za-z\u00c0-\u024f]"),
}

_HAN_WEIGHT = 3  # a character of Chinese or Japanese stands for about three letters

_WORDS = {
    "en": "a about an and any are as at be by can could do does don for from has have how i if in "
    "into is it its me more most my no not of on or s should some t than that the their "
    "them there they this to was we what when where which who why will with would you your",
    "es": "al antes cada como con cuál cuáles cuándo cuántas cuánto cuántos cómo de del después "
    "dónde el en entre es eso esta este está están hace hacer hay la las le les lo los me "
    "mi muy más no nos o para pero por porque puede puedo que quién qué se ser si sin sobre "
    "son su sus también te tu un una unas unos y yo",
    "fr": "a au aussi aux avec c ce ces cet cette chaque comment d dans de des dois du elle en "
    "entre est et faire fait il j je l la le les leur leurs lui ma mais me mes mon n ne "
    "nous on ou où par pas peut peux plus pour pourquoi qu quand que quel quelle quelles "
    "quels qui quoi s sa sans se ses si son sont sur ta te tes ton très tu un une vos votre "
    "vous y être",
    "pt": "a antes ao as cada com como da das de depois do dos e em entre esta este está estão eu "
    "faz fazer há isso lhe mais mas me meu minha muito na nas no nos num numa não o onde os "
    "ou para pela pelo pode por porque posso quais qual quando quantas quanto quantos que "
    "quem se sem ser seu seus sobre sua suas são também um uma umas uns você à é",
    "de": "aber als am an auch auf aus bei das dass dein dem den der des die du ein eine einem "
    "einen einer eines er es für haben hat ich ihr im in ins ist kann kein keine können man "
    "mehr mein meine mich mir mit muss nach nicht noch nur oder ohne sehr sich sie sind "
    "soll und unter vom von vor wann war warum was welche welcher welches wenn wer werden "
    "weshalb wie wieso wir wird wo zu zum zur zwischen über",
    "it": "a agli ai al all alla alle allo anche c che chi ci come con cos cosa da dal dalla "
    "degli dei del dell della delle dello di dove e ed essere fa fare fra gli i il in io l "
    "la le lo ma mi mia mio molto nei nel nell nella nelle non o ogni per perché più posso "
    "può quale quali quando quante quanti quanto questa questo se senza si sono su sua sul "
    "sulla suo ti tra tu un una uno è",
}
_FREQUENT = {language: frozenset(words.split()) for language, words in _WORDS.items()}

_MARKS = {"de": "ßäöü", "es": "ñ¿¡", "pt": "ãõ", "fr": "êûœî", "it": "òì"}
"""Letters and signs that only one of the languages has."""


def identify_language(text: str) -> str | None:
    """Return the language of most of a text, one of ``LANGUAGES``, or None if it is unclear."""
    counts = {name: len(script.findall(text)) for name, script in _SCRIPTS.items()}
    east = _HAN_WEIGHT * (counts["kana"] + counts["han"])
    if not any(counts.values()):
        return None
    if east > max(counts["cyrillic"], counts["latin"]):
        return "ja" if counts["kana"] * 10 > counts["han"] else "zh"
    return "ru" if counts["cyrillic"] > counts["latin"] else _identify_latin(text.lower())


def _identify_latin(text: str) -> str | None:
    words = Counter(re.findall(r"[^\W\d_]+", text))
    evidence = {
        language: sum(words[word] for word in frequent)
        + sum(text.count(mark) for mark in _MARKS.get(language, ""))
        for language, frequent in _FREQUENT.items()
    }
    (best, most), (_, second) = Counter(evidence).most_common(2)
    return best if most > second else None
