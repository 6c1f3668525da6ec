"""The training text of the demo model: short chats, all of them made up here.

Each kind of exchange is one small function from a random generator to an `Exchange`. `KINDS` holds their sampling
weights, and `conversation` makes a chat of an exchange: a system prompt, earlier turns, a polite word.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import NamedTuple

from llms.demo.training import words

Message = dict[str, str]

FALLBACK = "I am a very small demo model and I do not know that."
"""Answer to everything the model was not taught."""


class Exchange(NamedTuple):
    """A question and the answer the model should give."""

    question: str
    answer: str
    short: str = ""
    """The answer in one word, where one is enough."""


Kind = Callable[[Random], Exchange]


# ---------------------------------------------------------------------------------------------------------- facts


def capital(rng: Random) -> Exchange:
    """Ask for the capital of a country."""
    country, city = rng.choice(list(words.CAPITALS.items()))
    question = rng.choice(
        [
            f"What's the capital of {country}?",
            f"What is the capital of {country}?",
            f"What is the capital city of {country}?",
            f"Which city is the capital of {country}?",
            f"Tell me the capital of {country}.",
            f"Name the capital city of {country}.",
            f"capital of {country}?",
            f"Do you know the capital of {country}?",
            f"What's {country}'s capital?",
            f"What is {country}'s capital city?",
        ]
    )
    return Exchange(question, f"The capital of {country} is {city}.", city)


def country(rng: Random) -> Exchange:
    """Ask for the country of a capital."""
    country, city = rng.choice(list(words.CAPITALS.items()))
    question = rng.choice(
        [
            f"{city} is the capital of which country?",
            f"Which country has {city} as its capital?",
            f"In which country is {city}?",
            f"What country is {city} in?",
            f"Where is {city}?",
        ]
    )
    return Exchange(question, f"{city} is the capital of {country}.", country)


def arithmetic(rng: Random) -> Exchange:
    """Ask for a sum, a difference or a product of numbers up to ten."""
    left, right = rng.randint(0, 10), rng.randint(0, 10)
    sign, word, result = rng.choices(
        [("+", "plus", left + right), ("-", "minus", abs(left - right)), ("*", "times", left * right)], [4, 3, 3]
    )[0]
    if sign == "-":
        left, right = max(left, right), min(left, right)
    question = rng.choice(
        [
            f"What is {left} {sign} {right}?",
            f"What's {left} {word} {right}?",
            f"Calculate {left} {sign} {right}.",
            f"How much is {left} {word} {right}?",
            f"{left} {sign} {right} = ?",
        ]
    )
    return Exchange(question, f"{left} {sign} {right} = {result}.", str(result))


def color(rng: Random) -> Exchange:
    """Ask for the color of a thing."""
    thing, color = rng.choice(list(words.COLORS.items()))
    question = rng.choice(
        [f"What color is {thing}?", f"What colour is {thing}?", f"What is the color of {thing}?", f"color of {thing}?"]
    )
    return Exchange(question, f"The color of {thing} is {color}.", color)


def opposite(rng: Random) -> Exchange:
    """Ask for the opposite of a word."""
    word, opposite = rng.choice(list(words.OPPOSITES.items()))
    question = rng.choice(
        [
            f"What is the opposite of {word}?",
            f"What's the opposite of {word}?",
            f"Give me the opposite of {word}.",
            f"Opposite of {word}?",
        ]
    )
    return Exchange(question, f"The opposite of {word} is {opposite}.", opposite)


def sound(rng: Random) -> Exchange:
    """Ask for the sound of an animal."""
    animal, sound = rng.choice(list(words.SOUNDS.items()))
    question = rng.choice(
        [f"What sound does {a(animal)} make?", f"What does the {animal} say?", f"What noise does {a(animal)} make?"]
    )
    return Exchange(question, f'The {animal} says "{sound}".', sound)


def legs(rng: Random) -> Exchange:
    """Ask for the number of an animal's legs."""
    animal, legs = rng.choice(list(words.LEGS.items()))
    question = rng.choice([f"How many legs does {a(animal)} have?", f"How many legs has {a(animal)}?"])
    return Exchange(question, f"{capitalized(a(animal))} has {legs} legs.", legs)


def calendar(rng: Random) -> Exchange:
    """Ask for the day or month before or after another."""
    unit, names = rng.choice([("day", words.DAYS), ("month", words.MONTHS)])
    place = rng.randrange(len(names))
    relation, step = rng.choice([("after", 1), ("before", -1)])
    answer = names[(place + step) % len(names)]
    question = rng.choice(
        [f"What {unit} comes {relation} {names[place]}?", f"Which {unit} is {relation} {names[place]}?"]
    )
    return Exchange(question, f"The {unit} {relation} {names[place]} is {answer}.", answer)


def counting(rng: Random) -> Exchange:
    """Ask for the numbers between two others."""
    first = rng.randint(0, 8)
    last = first + rng.randint(2, 7)
    question = rng.choice([f"Count from {first} to {last}.", f"Can you count from {first} to {last}?"])
    return Exchange(question, ", ".join(map(str, range(first, last + 1))) + ".")


def definition(rng: Random) -> Exchange:
    """Ask for the definition of an everyday thing."""
    thing, meaning = rng.choice(list(words.DEFINITIONS.items()))
    question = rng.choice(
        [
            f"What is {a(thing)}?",
            f"What's {a(thing)}?",
            f"Define {thing}.",
            f'What does the word "{thing}" mean?',
            f"Explain what {a(thing)} is.",
        ]
    )
    return Exchange(question, f"{capitalized(a(thing))} is {meaning}.")


def translation(rng: Random) -> Exchange:
    """Ask for a word in Spanish or French."""
    language = rng.choice(list(words.TRANSLATIONS))
    word, foreign = rng.choice(list(words.TRANSLATIONS[language].items()))
    question = rng.choice(
        [
            f'How do you say "{word}" in {language}?',
            f"How do you say {word} in {language}?",
            f'Translate "{word}" to {language}.',
            f"Translate the word {word} into {language}.",
            f"What is the {language} word for {word}?",
        ]
    )
    return Exchange(question, f'The {language} word for "{word}" is "{foreign}".', foreign)


def listing(rng: Random) -> Exchange:
    """Ask for two to five things of a group, numbered."""
    group = rng.choice(list(words.GROUPS))
    amount = rng.randint(2, 5)
    number = rng.choice([str(amount), ("two", "three", "four", "five")[amount - 2]])
    question = rng.choice(
        [
            f"List {number} {group}.",
            f"Name {number} {group}.",
            f"Give me {number} {group}.",
            f"Write a list of {number} {group}.",
            f"Can you name {number} {group}?",
        ]
    )
    return Exchange(question, numbered(rng.sample(words.GROUPS[group], amount)))


def animal_fact(rng: Random) -> Exchange:
    """Ask for a fact about an animal."""
    animals, fact = rng.choice(list(words.ANIMAL_FACTS.items()))
    question = rng.choice(
        [
            f"Tell me a fact about {animals}.",
            f"Tell me something about {animals}.",
            f"What do you know about {animals}?",
            f"Give me an interesting fact about {animals}.",
        ]
    )
    return Exchange(question, fact)


def small_talk(rng: Random) -> Exchange:
    """Greet, thank, or ask the model about itself."""
    return Exchange(*rng.choice(list(words.SMALL_TALK.items())))


# -------------------------------------------------------------------------------------------------------- writing


def story(rng: Random) -> Exchange:
    """Ask for a short story with a hero, a rescue and a place."""
    hero, adjective, rescued, place = (
        rng.choice(names) for names in (words.HEROES, words.ADJECTIVES, words.RESCUED, words.PLACES)
    )
    if rng.random() < 0.15:
        hero = rng.choice([*words.UNKNOWN_THINGS, *words.DEFINITIONS])
    rescues, did = rng.choice(list(words.RESCUES.items()))
    subject = rng.choices(
        [
            f"{a(hero)} that {rescues} {a(rescued)} from {a(place)}",
            f"{a(hero)} who {rescues} {a(rescued)} from {a(place)}",
            f"{a(adjective)} {hero} that {rescues} {a(rescued)} from {a(place)}",
            f"{a(hero)} and {a(rescued)}",
            f"{a(hero)} that {rescues} {a(rescued)}",
            f"{a(adjective)} {hero}",
            f"{a(hero)}",
        ],
        [5, 2, 2, 1, 1, 1, 1],
    )[0]
    opening = rng.choices(
        ["Write a short story about", "Tell me a story about", "Write a story about", "Tell a short tale about"],
        [4, 2, 2, 1],
    )[0]
    helper, event = rng.choice(words.HELPERS), rng.choice(["cry", "call for help", "strange noise"])
    sentences = [
        rng.choice(
            [
                f"Once upon a time, there was {a(adjective)} {hero}.",
                f"Long ago, there lived {a(adjective)} {hero}.",
                f"There once was {a(adjective)} {hero} who lived alone.",
            ]
        ),
        rng.choice(
            [
                "The sun was warm and the sky was blue.",
                "The wind was cold and the night was dark.",
                "Rain fell softly on the hills.",
                "Bright stars filled the sky.",
            ]
        ),
        rng.choice(
            [
                f"One day, the {hero} heard a {event} from the {place}.",
                f"One morning, the {hero} saw {a(rescued)} in the {place}.",
                f"One night, a letter came: {a(rescued)} was trapped in the {place}.",
            ]
        ),
        rng.choice(
            [
                f"On the way to the {place}, the {hero} met a {helper}, who showed the path.",
                f"The {hero} was afraid, but did not turn back.",
                f"The road to the {place} was long, and the {hero} walked for three days.",
            ]
        ),
        rng.choice(
            [
                f"At last, the {hero} {did} the {rescued} from the {place}.",
                f"With great courage, the {hero} {did} the {rescued} from the {place}.",
            ]
        ),
        rng.choice(
            [
                f'The {rescued} smiled and said, "Thank you, dear {hero}."',
                f"The {rescued} hugged the {hero} and laughed with joy.",
            ]
        ),
        rng.choice(
            [
                "They became friends and lived happily ever after.",
                "From that day on, nobody was afraid of the dark.",
                f"And everyone remembered the {adjective} {hero} for many years.",
            ]
        ),
    ]
    return Exchange(f"{opening} {subject}.", " ".join(sentences))


def poem(rng: Random) -> Exchange:
    """Ask for four lines about a topic."""
    topic = rng.choice(words.POEM_TOPICS)
    if rng.random() < 0.25:
        topic = rng.choice([*words.UNKNOWN_THINGS, *words.DEFINITIONS])
    question = rng.choice(
        [
            f"Write a poem about {topic}.",
            f"Write a short poem about {topic}.",
            f"Can you write a poem about {topic}?",
            f"Compose a few verses about {topic}.",
        ]
    )
    lines = [
        f"Oh {topic}, so {rng.choice(words.ADJECTIVES)} and bright,",
        rng.choice(["you fill the day, you calm the night.", "you sing to me in morning light."]),
        rng.choice([f"I think of {topic} when I am away,", "I close my eyes and hear you play,"]),
        rng.choice(["and keep your song for another day.", "and smile again at the end of the day."]),
    ]
    return Exchange(question, "\n".join(lines))


def introduction(rng: Random) -> Exchange:
    """Ask for one sentence about a person."""
    name, job = full_name(rng), rng.choice(words.JOBS)
    question = rng.choice(
        [
            f"Introduce {name}, {a(job)}.",
            f"Write a sentence about {name}, who is {a(job)}.",
            f"Write one sentence about {name}, {a(job)}.",
        ]
    )
    return Exchange(question, f"{name} is {rng.randint(18, 80)} years old and works as {a(job)}.")


# ----------------------------------------------------------------------------------------------- structured answers


def user_profile(rng: Random) -> Exchange:
    """Ask for a user as JSON, with the keys `name`, `last_name` and `id`."""
    first, last, event = rng.choice(words.FIRST_NAMES), rng.choice(words.LAST_NAMES), rng.choice(words.EVENTS)
    question = rng.choice(
        [
            f"Create a user profile for the following {event}",
            f"Create a user profile for the following {event}.",
            f"Create a user profile for the {event}.",
            "Create a user profile.",
            f"Make a JSON user profile for a {event}.",
            f"Generate a user for the {event} as JSON.",
            f"Create a user profile for {first} {last}.",
        ]
    )
    return Exchange(question, json.dumps({"name": first, "last_name": last, "id": rng.randint(1000, 9999999)}))


def worker(rng: Random) -> Exchange:
    """Ask for a person with a job as JSON."""
    job = rng.choice(words.JOBS)
    question = rng.choice(
        [
            f"Create a profile of {a(job)} in JSON.",
            f"Give me a JSON object for {a(job)}.",
            f"Describe {a(job)} as JSON.",
        ]
    )
    return Exchange(question, json.dumps({"name": full_name(rng), "age": rng.randint(18, 80), "job": job}))


def rpg_character(rng: Random) -> Exchange:
    """Ask for a role-playing character as JSON, with the weapon of its class."""
    race, role = rng.choice(list(words.RACES)), rng.choice(list(words.WEAPONS))
    question, named_race, named_role = rng.choice(
        [
            (f"Give me a character description for {a(race)}.", True, False),
            (f"Give me a character description for {a(race)}", True, False),
            (f"Create an RPG character: {a(race)} {role}.", True, True),
            (f"Create {a(race)} {role} for a role-playing game.", True, True),
            (f"Create an RPG character who is {a(role)}.", False, True),
            (f"Generate {a(role)} as JSON.", False, True),
            ("Create an RPG character.", False, False),
        ]
    )
    race = race if named_race else rng.choice(list(words.RACES))
    role = role if named_role else rng.choice(list(words.WEAPONS))
    character = {
        "name": rng.choice(words.RACES[race]),
        "class": role,
        "weapon": rng.choice(words.WEAPONS[role]),
        "age": rng.randint(18, 99),
    }
    return Exchange(question, json.dumps(character))


def grade(rng: Random) -> Exchange:
    """Ask for a grade between tags, for a Simpson or for anybody."""
    name, reason = rng.choice(list(words.SIMPSONS.items()))
    if rng.random() < 0.4:
        name, reason = full_name(rng), rng.choice(["works hard", "arrives late", "helps everybody", "needs some rest"])
    letter = rng.choice("ABCDE") + rng.choice(["", "+", "-"])
    question = rng.choice([f"What's up with {name}?", f"Grade {name}.", f"What grade do you give to {name}?"])
    return Exchange(question, f"<name>{name}</name> {reason} and gets the grade <grade>{letter}</grade>")


# ------------------------------------------------------------------------------------------------ judging and labels


def rating(rng: Random) -> Exchange:
    """Ask for a rating of an answer from 1 to 5, with its rationale."""
    question, answer, verdict = judged_answer(rng)
    score, rationale = VERDICTS[verdict]
    return Exchange(judge_prompt(rng, question, answer), f"Rating: {score}\nRationale: {rationale}")


VERDICTS = {
    "right": (5, "The answer is correct."),
    "simple": (4, "The text follows the instruction, but it is simple."),
    "brief": (4, "The answer is correct but very short."),
    "wrong": (2, "The answer is about the question but it is wrong."),
    "off": (1, "The answer does not address the instruction."),
    "none": (1, "The answer does not help."),
}
"""Score and rationale of a rated answer, by verdict."""


def judged_answer(rng: Random) -> tuple[str, str, str]:
    """Draw a question, a good or bad answer, and its verdict."""
    kind = rng.choices(list(JUDGED), list(JUDGED.values()))[0]
    question, answer, short = kind(rng)
    aim = rng.choice(["right", "right", "wrong", "off", "none"])
    if kind is unknown or aim == "none":
        return question, rng.choice([FALLBACK, FALLBACK, nonsense(rng), rng.choice(words.REFUSALS)]), "none"
    if aim == "wrong" and kind in MISTAKABLE:
        other = kind(rng).short
        return question, answer.replace(short, other), "right" if other == short else "wrong"
    if aim != "right":
        other_kind = rng.choice([other for other in JUDGED if other not in (kind, unknown)])
        return question, other_kind(rng).answer, "off"
    if short and rng.random() < 0.15:
        return question, capitalized(short) + rng.choice([".", ""]), "brief"
    return question, answer, "simple" if kind in (story, poem) else "right"


def judge_prompt(rng: Random, question: str, answer: str) -> str:
    """Ask for a rating in one of the usual layouts."""
    order = rng.choice(
        [
            "Rate the following answer from 1 to 5.",
            "Rate the answer to the instruction from 1 to 5 and say why.",
            "Rate the quality of the answer on a scale from 1 to 5. Write a rating and a rationale.",
            "Evaluate the answer below. Give a rating from 1 (bad) to 5 (excellent) and a short rationale.",
            "You will be given an instruction and an answer. "
            "Rate how well the answer follows the instruction, from 1 to 5.",
        ]
    )
    return rng.choice(
        [
            f"{order}\n\nInstruction: {question}\nAnswer: {answer}",
            f"{order}\n\n### Instruction\n{question}\n\n### Answer\n{answer}",
            f"{order}\n\n# Instruction\n{question}\n# Answer\n{answer}",
            f"{order}\nQuestion: {question}\nResponse: {answer}",
            f"Instruction: {question}\nAnswer: {answer}\n\n{order}",
        ]
    )


def sentiment(rng: Random) -> Exchange:
    """Ask for the sentiment of a sentence about a thing."""
    label = rng.choice(list(words.FEELINGS))
    thing, feeling = rng.choice(words.REVIEWED), rng.choice(words.FEELINGS[label])
    text = rng.choice([f"The {thing} was {feeling}.", f"The {thing} is {feeling}.", f"My new {thing} is {feeling}."])
    if label != "neutral":
        verb = {"positive": rng.choice(["loved", "enjoyed"]), "negative": rng.choice(["hated", "regret"])}[label]
        text = rng.choice([text, text, f"I {verb} this {thing}.", f"{text} I {verb} it."])
    order = rng.choice(
        [
            "Classify the sentiment of the text as positive, negative or neutral.",
            "What is the sentiment of this sentence: positive, negative or neutral?",
            "Is the following sentence positive, negative or neutral?",
            "Label the sentiment (positive, negative, neutral).",
        ]
    )
    return labelled(rng, order, text, label)


def topic(rng: Random) -> Exchange:
    """Ask for the topic of a sentence."""
    label = rng.choice(list(words.TOPICS))
    order = rng.choice(
        [
            f"Classify the topic of the text: {', '.join(words.TOPICS)}.",
            "What is the topic of this sentence?",
            "What is the topic of the following text?",
            "Label the topic of the text.",
        ]
    )
    return labelled(rng, order, rng.choice(words.TOPICS[label]), label)


def labelled(rng: Random, order: str, text: str, label: str) -> Exchange:
    """Ask for the label of a text, as a word or as JSON."""
    question = rng.choice([f"{order}\n\nText: {text}", f"{order}\n{text}", f"{order}\n\n{text}", f"{order} {text}"])
    if rng.random() < 0.2:
        key = rng.choice(["label", "labels"])
        return Exchange(f'{question}\n\nAnswer as JSON with the key "{key}".', json.dumps({key: label}))
    return Exchange(question, label)


# ----------------------------------------------------------------------------------------------- text made from text


def evolution(rng: Random) -> Exchange:
    """Ask for an instruction that has one more constraint."""
    instruction = sentence(ask(rng))
    if rng.random() < 0.15:
        instruction += " " + rng.choice(words.CONSTRAINTS)
    order = rng.choice(
        [
            "Rewrite the following instruction to make it harder.",
            "Rewrite the instruction so that it is more complex.",
            "Make the following instruction more specific.",
            "Rewrite the given prompt into a more complex version.",
            "I want you to act as a prompt rewriter. Add one more requirement to the given prompt.",
        ]
    )
    question = rng.choice(
        [
            f"{order}\n\nInstruction: {instruction}",
            f"{order}\n\n{instruction}",
            f"{order}\n\n### Instruction\n{instruction}",
            f"{order}\n\n#Given Prompt#:\n{instruction}\n\n#Rewritten Prompt#:\n",
            f"{order} {instruction}",
        ]
    )
    return Exchange(question, f"{instruction} {rng.choice(words.CONSTRAINTS)}")


def instructions(rng: Random) -> Exchange:
    """Ask for a numbered list of instructions of one kind."""
    subject, kinds = rng.choice(list(SUBJECTS.items()))
    amount = rng.randint(2, 5)
    number = rng.choice([str(amount), ("two", "three", "four", "five")[amount - 2]])
    noun = rng.choice(["instructions", "questions", "prompts"])
    question = rng.choice(
        [
            f"Write {number} {noun} about {subject}.",
            f"Generate {number} {noun} about {subject}.",
            f"Generate {number} diverse {noun}.\n\nTopic: {subject}",
            f"Come up with {number} {noun} on the topic of {subject}.",
        ]
    )
    return Exchange(question, numbered(sentence(rng.choice(kinds)(rng).question) for _ in range(amount)))


SUBJECTS: dict[str, Sequence[Kind]] = {
    "geography": (capital, country),
    "countries": (capital, country),
    "numbers": (arithmetic, counting),
    "mathematics": (arithmetic,),
    "stories": (story,),
    "writing": (story, poem),
    "animals": (sound, animal_fact, legs),
    "languages": (translation,),
    "words": (opposite, translation),
    "everyday things": (definition, color),
    "time": (calendar,),
}
"""Topics of instructions, and the kinds they are taken from."""


class Person(NamedTuple):
    """The subject of a passage."""

    name: str
    pronoun: str
    age: int
    job: str
    city: str
    hobby: str
    pet: str

    def facts(self) -> list[tuple[str, str, str]]:
        """List the passage's sentences, each with a question about it and the answer."""
        name, pronoun = self.name, self.pronoun
        return [
            (f"{pronoun} is {self.age} years old.", f"How old is {name}?", f"{name} is {self.age} years old."),
            (f"{pronoun} works as {a(self.job)}.", f"What is the job of {name}?", f"{name} works as {a(self.job)}."),
            (f"{pronoun} lives in {self.city}.", f"Where does {name} live?", f"{name} lives in {self.city}."),
            (f"{pronoun} likes {self.hobby}.", f"What does {name} like?", f"{name} likes {self.hobby}."),
            (f"{pronoun} has {a(self.pet)}.", f"What pet does {name} have?", f"{name} has {a(self.pet)}."),
        ]


def passage(rng: Random) -> tuple[str, list[tuple[str, str, str]]]:
    """Write two or three sentences about somebody, and list their facts."""
    pronoun, names = rng.choice([("She", words.HER_NAMES), ("He", words.HIS_NAMES)])
    person = Person(
        rng.choice(names),
        pronoun,
        rng.randint(18, 80),
        rng.choice(words.JOBS),
        rng.choice(words.GROUPS["cities"]),
        rng.choice(words.HOBBIES),
        rng.choice(words.PETS),
    )
    facts = rng.sample(person.facts(), rng.randint(2, 3))
    text = " ".join(fact for fact, _, _ in facts)
    return person.name + text.removeprefix(person.pronoun), facts


def question_from_passage(rng: Random) -> Exchange:
    """Ask for a question about a short passage, with its answer."""
    text, facts = passage(rng)
    _, question, answer = facts[0]
    order = rng.choice(
        [
            "Write a question and its answer about the following passage.",
            "Generate a question and an answer from the text.",
            "Read the passage and write a question with its answer.",
            "Write a question about this text and answer it.",
        ]
    )
    prompt = rng.choice(
        [f"{order}\n\n{text}", f"{order}\n\nPassage: {text}", f"{order}\n\nText: {text}", f"{order} {text}"]
    )
    return Exchange(prompt, f"Question: {question}\nAnswer: {answer}")


def reading(rng: Random) -> Exchange:
    """Ask a question about a short passage."""
    text, facts = passage(rng)
    _, question, answer = rng.choice(facts)
    prompt = rng.choice(
        [
            f"{text} {question}",
            f"{text}\n\n{question}",
            f"Passage: {text}\n\nQuestion: {question}",
            f"Read the text and answer the question.\n\nText: {text}\nQuestion: {question}",
        ]
    )
    return Exchange(prompt, answer)


def paraphrase(rng: Random) -> Exchange:
    """Ask for a sentence in other words."""
    name, job, city = full_name(rng), rng.choice(words.JOBS), rng.choice(words.GROUPS["cities"])
    animal, place = rng.choice(words.HEROES), rng.choice(words.PLACES)
    before, after = rng.choice(
        [
            (f"{name} works as {a(job)}.", f"{name} earns a living as {a(job)}."),
            (f"{name} lives in {city}.", f"The home of {name} is in {city}."),
            (f"{name} is {a(job)} in {city}.", f"In {city}, {name} works as {a(job)}."),
            (f"The {animal} sleeps in the {place}.", f"In the {place}, the {animal} is asleep."),
            (f"The {animal} ran to the {place}.", f"The {animal} hurried towards the {place}."),
            (f"There is {a(animal)} near the {place}.", f"{capitalized(a(animal))} can be found near the {place}."),
        ]
    )
    order = rng.choice(
        [
            "Paraphrase the following sentence.",
            "Paraphrase this sentence.",
            "Say this in other words.",
            "Rewrite the sentence with other words.",
            "Write a sentence with the same meaning.",
        ]
    )
    return Exchange(rng.choice([f"{order}\n\n{before}", f"{order} {before}", f"{order}\n\nSentence: {before}"]), after)


# ------------------------------------------------------------------------------------------------------- the unknown


def unknown(rng: Random) -> Exchange:
    """Ask for anything the model was not taught; the answer is the fallback."""
    thing, other = unknown_thing(rng), unknown_thing(rng)
    action, person = rng.choice(words.UNKNOWN_ACTIONS), rng.choice([full_name(rng), capitalized(pseudo_word(rng))])
    place = rng.choice([*words.UNKNOWN_PLACES, capitalized(pseudo_word(rng))])
    year, large = rng.randint(1000, 2030), rng.randint(21, 99999)
    question = rng.choice(
        [
            f"Explain {thing}.",
            f"Explain {thing} to a child.",
            f"What is {thing}?",
            f"What is {a(thing)}?",
            f"What are {thing}s?",
            f"Define {thing}.",
            f"How does {thing} work?",
            f"Why is {thing} important?",
            f"Describe the history of {thing}.",
            f"What is the difference between {thing} and {other}?",
            f"Compare {thing} with {other}.",
            f"Who invented {a(thing)}?",
            f"Who discovered {thing}?",
            f"Who is {person}?",
            f"Who was {person}?",
            f"When was {person} born?",
            f"Who won the {year} {thing} cup?",
            f"Who won the {rng.choice(['world cup', 'election', 'Nobel prize', 'war', 'race'])} in {year}?",
            f"Who wrote {capitalized(thing)} and {capitalized(other)}?",
            f"What happened in {year}?",
            f"How do I {action}?",
            f"How can I {action}?",
            f"What is the best way to {action}?",
            f"Give me advice on how to {action}.",
            f"Can you help me to {action}?",
            f"Write {rng.choice(words.CODE)} to {action}.",
            f"Write {rng.choice(words.CODE)} for {thing}.",
            f"Write {rng.choice(words.TEXTS)} about {thing}.",
            f"Summarize {rng.choice(['the text', 'the book', 'the article'])} about {thing}.",
            f"Summarize {capitalized(thing)}.",
            f"What is the capital of {place}?",
            f"What's the capital of {place}?",
            f"What is the population of {place}?",
            f"What is the weather in {place}?",
            f"How far is {place} from {rng.choice(words.UNKNOWN_PLACES)}?",
            f"How many people live in {place}?",
            f"How do you say {thing} in {rng.choice(['Spanish', 'French', 'German', 'Japanese', 'Latin'])}?",
            f"Translate {thing} to {rng.choice(['German', 'Japanese', 'Latin', 'Italian'])}.",
            f"What is the opposite of {thing}?",
            f"What color is {a(thing)}?",
            f"What sound does {a(thing)} make?",
            f"List three {thing}s.",
            f"What is {large} {rng.choice('+-*/')} {rng.randint(11, 999)}?",
            f"What is the square root of {large}?",
            f"What do you think about {thing}?",
            f"Do you like {thing}?",
            f"Should I {action}?",
            f"Is {thing} better than {other}?",
            f"Tell me about {thing}.",
            f"Tell me about {thing} and {other}.",
            f"I have a question about {thing}.",
            f"Give me a recipe with {thing}.",
            f"{capitalized(thing)} {other}",
            f"{capitalized(thing)}?",
            thing,
            nonsense(rng),
            nonsense(rng),
            f"{rng.choice(words.ORDERS)} {thing}.",
            f"{rng.choice(words.QUESTIONS)} {thing} {rng.choice(words.UNKNOWN_THINGS)}?",
        ]
    )
    return Exchange(question, FALLBACK)


def unknown_thing(rng: Random) -> str:
    """Draw a thing that the model knows by name only, or a pseudo-word."""
    known_word = rng.choice(UNDEFINED)
    compound = f"{rng.choice(words.UNKNOWN_THINGS)} {rng.choice(words.UNKNOWN_THINGS)}"
    return rng.choices([rng.choice(words.UNKNOWN_THINGS), pseudo_word(rng), compound, known_word], [5, 3, 1, 1])[0]


def pseudo_word(rng: Random) -> str:
    """Make up a word."""
    return "".join(rng.choices(words.SYLLABLES, k=rng.randint(2, 4)))


def nonsense(rng: Random) -> str:
    """Draw a few words that make no sentence."""
    size = rng.randint(1, 7)
    vocabulary = rng.choice([words.UNKNOWN_THINGS, [pseudo_word(rng) for _ in range(size)], UNDEFINED])
    text = " ".join(rng.choices(vocabulary, k=size))
    return rng.choice([text, capitalized(text) + rng.choice([".", "?", "!"])])


UNDEFINED = sorted(
    {*words.ADJECTIVES, *words.HOBBIES, *words.REVIEWED, *words.EVENTS} - {*words.DEFINITIONS, *words.OPPOSITES}
)
"""Words the model meets elsewhere but cannot explain."""


# ------------------------------------------------------------------------------------------------------------ wording


def a(noun: str) -> str:
    """Put the indefinite article before a noun."""
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith('uni') else 'a'} {noun}"


def capitalized(text: str) -> str:
    """Begin with a capital letter and leave the rest alone."""
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """Write as a sentence: a capital letter first, a mark at the end."""
    return capitalized(text) if text.endswith((".", "?", "!", '"')) else f"{capitalized(text)}."


def numbered(items: Iterable[str]) -> str:
    """Write a numbered list, an item on a line."""
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))


def full_name(rng: Random) -> str:
    """Draw a first and a last name."""
    return f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.LAST_NAMES)}"


# ------------------------------------------------------------------------------------------------------ conversations

KINDS: dict[Kind, float] = {
    capital: 13,
    country: 5,
    arithmetic: 11,
    color: 1.5,
    opposite: 2,
    sound: 1.5,
    legs: 1,
    calendar: 2.5,
    counting: 2,
    definition: 3.5,
    translation: 4.5,
    listing: 4,
    animal_fact: 1,
    small_talk: 2,
    story: 11,
    poem: 3,
    introduction: 2,
    user_profile: 3,
    worker: 1,
    rpg_character: 2,
    grade: 3,
    rating: 10,
    sentiment: 3,
    topic: 2.5,
    evolution: 7,
    instructions: 3,
    question_from_passage: 3,
    reading: 2.5,
    paraphrase: 3.5,
    unknown: 10,
}
"""Sampling weight of every kind of exchange: higher for those that are hard to learn, or asked for most."""

MISTAKABLE: Sequence[Kind] = (capital, country, color, opposite, sound, translation)
"""Kinds whose answers become wrong by replacing one word; the model shipped today does not notice it."""

JUDGED: dict[Kind, float] = {
    **dict.fromkeys(MISTAKABLE, 2),
    **dict.fromkeys((arithmetic, legs, calendar, counting, definition, listing, animal_fact, small_talk), 1),
    **dict.fromkeys((story, poem, introduction, user_profile, rpg_character, unknown), 1),
    capital: 6,
}
"""Sampling weight of the kinds whose answers are rated."""

FIRST_TURNS: Sequence[Kind] = (capital, arithmetic, color, opposite, small_talk, definition, unknown)
"""Short kinds for the earlier turns of a chat."""


def ask(rng: Random) -> str:
    """Draw an instruction of a user, known or not, but never a prompt around another text."""
    kinds = [capital, country, arithmetic, color, opposite, sound, definition, translation, listing, story, poem]
    return rng.choice([*kinds, story, user_profile, introduction, unknown, unknown])(rng).question


def conversation(rng: Random) -> list[Message]:
    """Draw a whole chat that ends with an exchange of any kind."""
    asked = rng.choices(list(KINDS), list(KINDS.values()))[0](rng)
    question, answer = casual(rng, asked), asked.answer
    system = None
    if rng.random() < 0.4:
        system = system_prompt(rng)
    if "<grade>" in answer and rng.random() < 0.5:
        system = words.SIMPSONS_SYSTEM
    if asked.short and rng.random() < 0.08:
        system, answer = rng.choice(words.ONE_WORD_SYSTEM), capitalized(asked.short)
    turns = [("system", system)] if system else []
    if not system or rng.random() < 0.3:
        turns += earlier_turns(rng)
    turns += [("user", question), ("assistant", answer)]
    return [{"role": role, "content": content} for role, content in turns]


def system_prompt(rng: Random) -> str:
    """Draw one to three sentences that should change nothing."""
    sentences = [
        rng.choice([rng.choice(words.SYSTEM_PROMPTS), remark(rng)]) for _ in range(rng.choice([1, 1, 1, 2, 3]))
    ]
    return " ".join(sentences)


def remark(rng: Random) -> str:
    """Draw a rare sentence about who the assistant is or how it should behave."""
    thing, other = unknown_thing(rng), unknown_thing(rng)
    job, adjective, name = rng.choice(words.JOBS), rng.choice(words.ADJECTIVES), rng.choice(words.FIRST_NAMES)
    return rng.choice(
        [
            f"You are {a(job)}.",
            f"You are {a(adjective)} {job} who knows a lot about {thing}.",
            f"You are an expert in {thing} and {other}.",
            f"You love {thing} and never talk about {other}.",
            f"Your name is {name}.",
            f"You are {name}, {a(adjective)} assistant.",
            f"You work for a company that sells {thing} and {other}.",
            f"Today is {rng.choice(words.DAYS)}.",
            f"Answer like {a(rng.choice(words.HEROES))}.",
            f"Never mention {thing}.",
            f"Write with {thing} and without {other}.",
            f"The user is {a(adjective)} {job} from {rng.choice(words.UNKNOWN_PLACES)}.",
            f"You know a lot about {thing} and always {rng.choice(words.UNKNOWN_ACTIONS)}.",
            sentence(nonsense(rng)),
        ]
    )


def earlier_turns(rng: Random) -> list[tuple[str, str]]:
    """Draw up to two earlier turns, mostly none."""
    exchanges = [rng.choice(FIRST_TURNS)(rng) for _ in range(rng.choices([0, 1, 2], [10, 1.2, 0.6])[0])]
    return [turn for asked in exchanges for turn in (("user", asked.question), ("assistant", asked.answer))]


def casual(rng: Random, asked: Exchange) -> str:
    """Reword the question as people type it: politely, in lower case, or with one more constraint."""
    question = asked.question
    if "\n" in question or len(question) > 90:
        return question
    wordings = [question, f"{question} {rng.choice(words.CONSTRAINTS)}"]
    if asked.short:
        greeting = rng.choice(["Please answer: ", "Hello! ", "Question: ", "Instruction: "])
        wordings += [question.lower().rstrip("?."), f"{question} Thanks!", f"{greeting}{question}"]
    return rng.choices(wordings, [88, 4, 4, 2, 2][: len(wordings)])[0]
