"""Curated words for the emoji names: what the rules in names.py cannot know; checked by reading all names."""

# A name that is an adjective or a bare verb, said as a thing.
RENAMED = {
    "bald": "bald head",
    "construction": "construction sign",
    "copyright": "copyright sign",
    "divide": "division sign",
    "dizzy": "dizzy symbol",
    "infinity": "infinity sign",
    "information": "information sign",
    "locked": "closed lock",
    "locked with key": "lock with a key",
    "locked with pen": "lock with a pen",
    "minus": "minus sign",
    "multiply": "multiplication sign",
    "no bicycles": "no bicycles sign",
    "no entry": "no entry sign",
    "no littering": "no littering sign",
    "no mobile phones": "no mobile phones sign",
    "no one under eighteen": "no one under eighteen sign",
    "no pedestrians": "no pedestrians sign",
    "no smoking": "no smoking sign",
    "om": "om symbol",
    "plus": "plus sign",
    "prohibited": "prohibited sign",
    "radioactive": "radioactive sign",
    "registered": "registered sign",
    "star-struck": "star-struck face",
    "trade mark": "trade mark sign",
    "unlocked": "open lock",
    "warning": "warning sign",
    "wireless": "wireless sign",
}

# Heads of phrases that take no article.
UNCOUNTED = frozenset(
    [
        "bacon",
        "badminton",
        "baseball",
        "basketball",
        "bowling",
        "bread",
        "breast-feeding",
        "broccoli",
        "butter",
        "camping",
        "construction",
        "control",
        "cooking",
        "coral",
        "custard",
        "customs",
        "dna",
        "fencing",
        "fire",
        "fog",
        "foggy",
        "food",
        "garlic",
        "golf",
        "hair",
        "hockey",
        "honey",
        "ice",
        "jeans",
        "jewelry",
        "juggling",
        "lacrosse",
        "liquid",
        "luggage",
        "meat",
        "money",
        "oden",
        "paper-cutting",
        "polish",
        "polo",
        "popcorn",
        "racing",
        "rice",
        "rugby",
        "sake",
        "salt",
        "shrimp",
        "skis",
        "snow",
        "soap",
        "softball",
        "spaghetti",
        "sushi",
        "tennis",
        "volleyball",
        "water",
        "wood",
        "wrestling",
        "yarn",
    ]
)

# Whole names that take no article.
ALONE = frozenset(
    """Mrs. Claus|Mx Claus|Santa Claus|ZZZ|american football|baggage claim|canned food|children crossing|
    cityscape at dusk|currency exchange|dashing away|ginger root|high voltage|ice cream|input latin letters|
    input latin lowercase|input latin uppercase|input numbers|input symbols|left luggage|
    meat on bone|money with wings|mount fuji|night with stars|open hands|palms up together|passport control|
    people hugging|people wrestling|people with bunny ears|ping pong|
    rolling on the floor laughing|rugby football|soft ice cream|sunrise over mountains|thumbs down|thumbs up|
    vibration mode""".replace("\n    ", "").split("|")
)

# Whole names said with "the".
WITH_THE = frozenset(("Statue of Liberty", "Tokyo tower", "kaaba", "milky way", "sun"))

# Singulars that end like a plural.
SINGULAR = frozenset(("abacus", "hippopotamus", "rhinoceros", "crossbones", "americas"))

# Names whose first letter misleads about "a" and "an".
SOUNDS_LIKE_VOWEL = ("hour", "x-ray", "NG ", "SOS ", "ATM ")
SOUNDS_LIKE_CONSONANT = ("uni", "euro", "ewe", "one-", "one ", "ukulele")

# Places whose flag is said "the flag of the ...".
PLACES_WITH_THE = frozenset(
    """Bahamas|British Virgin Islands|Canary Islands|Caribbean Netherlands|Cayman Islands|Central African Republic|
    Cocos (Keeling) Islands|Comoros|Cook Islands|Dominican Republic|European Union|Falkland Islands|Faroe Islands|
    French Southern and Antarctic Lands|Isle of Man|Maldives|Marshall Islands|Netherlands|Northern Mariana Islands|
    Palestinian Territories|Philippines|Pitcairn Islands|Seychelles|Solomon Islands|Turks & Caicos Islands|
    U.S. Outlying Islands|U.S. Virgin Islands|United Arab Emirates|United Kingdom|United Nations|United States|
    Vatican City|Åland Islands""".replace("\n    ", "").split("|")
)

# "man red hair" and the like.
HAIR = {
    "red hair": "{} with red hair",
    "curly hair": "{} with curly hair",
    "white hair": "{} with white hair",
    "blond hair": "{} with blond hair",
    "bald": "bald {}",
    "beard": "{} with a beard",
}
