"""What the pages call what people give them: images that physicians read, or drawings that anybody makes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lightbox.ui.answers import Model


@dataclass(frozen=True)
class Words:
    """The words of one kind of pages.

    Attributes:
        thing: what is classified.
        a_thing: the same with its article.
        accepts: files that may be chosen instead, in words.
        suffixes: the same, for the browser.
        synthetic: what is said of a model that was trained on images that were drawn by a program.
        caution: what a verdict is and is not.
        decides: who has the last word.
        reader: who should look when the model is not certain, and what they do.
        lede: what the model card says a verdict is good for.
        heading: above the place to draw in.
        hint: how to draw.
    """

    thing: str = "image"
    a_thing: str = "an image"
    accepts: str = "PNG, JPEG or DICOM"
    suffixes: str = ".png,.jpg,.jpeg,.dcm,image/png,image/jpeg,application/dicom"
    synthetic: str = "This model was trained on synthetic images: not for clinical use"
    caution: str = "Decision support, not a diagnosis."
    decides: str = "A physician decides."
    reader: str = "A physician should read"
    lede: str = (
        "It supports a decision and is no diagnosis; the figures below say how far it can be trusted, and where it "
        "cannot."
    )
    heading: str = ""
    hint: str = ""


IMAGES = Words()
DRAWINGS = Words(
    thing="drawing",
    a_thing="a drawing",
    accepts="PNG or JPEG",
    suffixes=".png,.jpg,.jpeg,image/png,image/jpeg",
    synthetic="This model was trained on synthetic drawings: a program made them",
    caution="A guess, not a certainty.",
    decides="Who drew it knows best.",
    reader="A person should look at",
    lede="It guesses; the figures below say how often it is right, and where it is not.",
    heading="Draw inside This Box",
    hint="Draw in white on black; what you draw should fill most of the square.",
)
ANYWHERE = "Draw in white on black, anywhere and in any size: it is centred before it is looked at."


def words_of(model: Model | None) -> Words:
    """Return the words for what a model takes. Of a model that is not known the most cautious are said."""
    if model is None or model.form != "canvas":
        return IMAGES
    words = DRAWINGS
    if model.labels and all(len(label) == 1 and label.isdecimal() for label in model.labels):
        words = replace(words, heading="Draw a Digit inside This Box")
    shaping = model.contract.get("preprocessing")
    if isinstance(shaping, dict) and shaping.get("resize") == "centred":
        words = replace(words, hint=ANYWHERE)
    return words
