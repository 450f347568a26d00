"""Limits of the server: what a request may ask for, and what a connection may hold. Each has a term in the plan."""

MOST_CONNECTIONS = 64
"""Most connections at a time, unless ``--connections`` says otherwise."""
HEADER_BYTES = 64 << 10
"""Most bytes of a request without its body: a history of 2,000 ids of 30 letters."""
BODY_BYTES = 64 << 10
"""Most bytes of a request's body."""
CONNECTION_BYTES = 128 << 10
"""Memory of a connection: header and body of a request, or the part of an answer that waits, and its objects (measured
75 KiB with half requests, and 90 with clients that do not read)."""
MOST_PIPELINED = 4
"""Most requests that a connection may send ahead of their answers."""
REQUEST_SECONDS = 10
"""Time in which a whole request must arrive, and a client must take the next part of its answer."""
ANSWER_SECONDS = 30
"""Time in which a client must take a whole answer that is sent in parts."""
MOST_ANSWERS = 4
"""Most large answers that are computed and sent at a time; further ones wait."""
SMALL_ENTRIES = 64
"""Items of an answer that is not large: it is computed as a whole, and waits for no other."""
EXPLAINED_AT_ONCE = 16
"""Recommendations that are described and explained at a time."""
PIECE_BYTES = 32 << 10
"""Bytes from which a part of an answer is sent."""
MOST = 1000
"""Largest ``k`` and ``explain``."""
MOST_ENTRIES = 5000
"""Most items in an answer, with those that explain: lists times ``k`` times ``1 + explain``."""
MOST_LISTS = 100
"""Most users and histories of a request."""
MOST_NAMED = 2000
"""Most ids of a request: of histories, ``exclude``, ``only`` and ``candidates`` together."""
LONGEST_SEARCH = 100
"""Most letters of a search in titles."""
MOST_FOUND = 100
"""Most items that a search finds."""
MOST_OF_USER = 1000
"""Most events of a user since the model was made."""
EVENTS = 10_000
"""Most events since the model was made, unless ``--feedback-events`` says otherwise."""
MOST_EVENTS = 500
"""Most events of a request with feedback."""
