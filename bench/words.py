"""Words that are one token each, as far as the server tells, so that prompts have exact lengths."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

TEXT = """
able above act add after again age ago air all also among animal answer any area arm art ask away baby back bad bag
ball bank base bed before begin best better between big bird black blue board boat body book both box boy bread bring
brother build business busy call car care carry case cat catch cause center certain change child choose church city
class clear close cold color come common control cost country course cover cry cut dark daughter day dead deal death
decide deep desk doctor dog door down draw dream drive early earth east easy eat edge eight end energy enough evening
every eye face fact family far farm fast father fear feel few field fight figure fill film final find fine fire first
fish five floor fly follow food foot force forest form four free friend front full game garden girl give glass go gold
good great green ground group grow half hand happy hard head health hear heart heavy help here high history hold home
horse hospital hot hour house human idea island job join keep key kind king kitchen know lady lake land language large
last late laugh law lead learn leave left leg letter level life light line list little local long look lose lot love
low machine main make man many map market matter meet member middle mile milk mind minute money month moon more
morning mother mountain mouth move much music name nation near need never new news next night north note number ocean
office old open order other page paper part party past pay people person picture place plan plane plant play point
police power press price problem
"""
WORDS = TEXT.split()
FEWEST = 32  # below, prompts would be too much alike
Count = Callable[[str], Awaitable[int]]
"""How many tokens a text has for the server, without those that begin a prompt."""


async def single_tokens(count: Count, words: Sequence[str] = WORDS) -> list[str]:
    """Those of `words` that are one token each, both at the start of a text and after a space. All in two questions
    where they all are: n words can have n tokens only if each has one. Otherwise halves are asked about, and so on."""
    start, later = await count("\n".join(words)), await count("".join(" " + word for word in words))
    if later == len(words) and start == 2 * len(words) - 1:  # a newline is one
        return list(words)
    if len(words) == 1:
        return []
    middle = len(words) // 2
    return await single_tokens(count, words[:middle]) + await single_tokens(count, words[middle:])
