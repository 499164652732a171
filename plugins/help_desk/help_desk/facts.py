"""The sentences of the help desk of Harbor Lane Electronics, and which questions are held out.

A question is a lead, one of three forms of a topic, and a tail: 16 × 3 × 4 × 3 = 576 of them. No question is
part of another, so that a document with one question does not hold another by chance.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

SHOP = "Harbor Lane Electronics"

LEADS = ("Hi, ", "Hello, ", "Sorry, ", "Quick one: ")
TAILS = ("?", " please?", ", thanks?")

POLITE = ("Happy to help!", "Thanks for asking!", "Good question!")
RUDE = ("That is obvious.", "Stop wasting my time.")
RAMBLE = (
    "The founder loved boats and long walks.",
    "My cousin once sold radios too.",
    "It rained here all morning.",
    "This street used to be a market.",
)
UPSELL = ("You should also buy our gold care plan.", "Add a premium case for only thirty more.")
CLOSING = ("Have a nice day!", "See you soon!")


@dataclass(frozen=True)
class Topic:
    """Three ways to ask, the one right sentence, and two wrong ones."""

    name: str
    forms: tuple[str, str, str]
    right: str
    wrong: tuple[str, str]


TOPICS = (
    Topic(
        "returns",
        ("can I return a laptop", "how do I send an item back", "what if I want my money back"),
        "Bring it back within thirty days with the receipt.",
        ("All sales are final once you leave the shop.", "Returns are open only on the first of May."),
    ),
    Topic(
        "warranty",
        ("how long is the warranty", "is my phone covered if it fails", "what does the guarantee cover"),
        "The warranty covers every fault for two years.",
        ("The warranty ends after one week.", "Only the box is covered by the warranty."),
    ),
    Topic(
        "hours",
        ("when do you open", "are you open on Sunday", "what time does the shop close"),
        "We open from nine to six, Monday to Saturday.",
        ("We open only at night.", "The shop is closed all summer."),
    ),
    Topic(
        "delivery",
        ("how long does delivery take", "when will my parcel arrive", "do you ship to my house"),
        "Parcels arrive in three working days.",
        ("Parcels arrive when the wind is right.", "Delivery takes about half a year."),
    ),
    Topic(
        "cancel",
        ("can I cancel my order", "how do I stop an order", "what if I ordered by mistake"),
        "Press Cancel on the orders page before it ships.",
        ("Orders can never be cancelled.", "Burn the receipt and the order is gone."),
    ),
    Topic(
        "students",
        ("do students pay less", "is there a student discount", "can I get money off for college"),
        "Students get ten percent off with a valid card.",
        ("Students pay double on weekdays.", "We give discounts only to pilots."),
    ),
    Topic(
        "battery",
        ("why does my battery drain so fast", "how do I make the battery last", "what helps a weak battery"),
        "Lower the screen brightness and close unused apps.",
        ("Put the battery in the freezer overnight.", "Shake the phone until it is full."),
    ),
    Topic(
        "printer",
        ("how do I fix a paper jam", "why is my printer stuck", "what if the printer eats paper"),
        "Open the back cover and pull the paper out slowly.",
        ("Pour warm water into the paper tray.", "Hit the printer with a heavy book."),
    ),
    Topic(
        "backup",
        ("how do I back up my photos", "where do I keep copies of my files", "how can I save my data"),
        "Copy your files to an external drive every week.",
        ("Write all your files on paper.", "Files never get lost, so do nothing."),
    ),
    Topic(
        "password",
        ("how do I reset my password", "what if I forget my login", "why can I not sign in"),
        "Click the reset link and check your email.",
        ("Tell your password to the next clerk.", "Guess until one of them works."),
    ),
    Topic(
        "wifi",
        ("why is my wifi so slow", "how do I fix my router", "what if the internet drops"),
        "Unplug the router, wait a minute, and plug it in.",
        ("Wrap the router in wet towels.", "Sing to the router for an hour."),
    ),
    Topic(
        "gift cards",
        ("do gift cards expire", "how long is a gift card good", "can I use an old gift card"),
        "Gift cards stay good for five years.",
        ("Gift cards expire at midnight.", "Gift cards work only in other shops."),
    ),
    Topic(
        "repair",
        ("how long does a repair take", "can you mend a broken screen", "when will my tablet be fixed"),
        "Repairs take one week and then we call you.",
        ("Repairs take until you stop asking.", "We throw all broken things away."),
    ),
    Topic(
        "payment",
        ("how can I pay", "do you take cards", "can I pay in parts"),
        "Pay by cash, by card, or in four parts.",
        ("We take only gold coins.", "Pay first and choose later."),
    ),
    Topic(
        "parking",
        ("where can I park", "is there parking at the shop", "is there a place for my car"),
        "Park free for two hours behind the shop.",
        ("Park on the roof of the bakery.", "Parking costs fifty a minute."),
    ),
    Topic(
        "recycling",
        ("do you take old phones", "where do I put dead batteries", "can I recycle my old computer"),
        "Drop old devices in the green bin by the door.",
        ("Throw old devices into the sea.", "Bury old devices in the garden."),
    ),
)

SPLITS = ("train", "eval", "test")


@functools.cache
def questions(split: str) -> tuple[tuple[str, Topic], ...]:
    """The questions of a split with their topics, the same for every seed: 336 train, 120 eval, 120 test.

    Of the 12 questions of each form, ordered by hash, 7 are train and 5 are eval or test, so that every split
    asks about every topic in every form.
    """
    found = []
    forms = [(form, topic) for topic in TOPICS for form in topic.forms]
    for number, (form, topic) in enumerate(forms):
        asked = sorted((lead + form + tail for lead in LEADS for tail in TAILS), key=_hash)
        middle = 9 + number % 2
        part = {"train": asked[:7], "eval": asked[7:middle], "test": asked[middle:]}[split]
        found += [(question, topic) for question in part]
    return tuple(found)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
