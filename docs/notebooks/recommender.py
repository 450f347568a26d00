# %% [markdown]
# # A recommender in 400 MiB
#
# `Recommender` trains on a pandas DataFrame and answers with DataFrames. Each step runs in a process of its own that
# may hold as much memory as you say, libraries included. What this notebook holds does not count.

# %%
import numpy as np
import pandas as pd

from apps.recsys import Recommender
from common.errors import DoesNotFit

# %% [markdown]
# ## Interactions
#
# Made up here: 400 people and 150 films of three genres. Everybody prefers one genre and has seen 20 films, 16 of them
# of that genre. A row says who saw what; a column with ratings or play counts would be used too, and so would times.

# %%
random = np.random.default_rng(0)
genres = np.array(["noir", "western", "musical"])
films = pd.DataFrame({"film": range(150), "title": [f"{genres[film % 3]} {film}" for film in range(150)]})
rows = []
for person in range(400):
    loved = np.flatnonzero(films["film"] % 3 == person % 3)
    others = np.flatnonzero(films["film"] % 3 != person % 3)
    seen = [*random.choice(loved, 16, replace=False), *random.choice(others, 4, replace=False)]
    rows += [(f"person {person}", film) for film in seen]
seen = pd.DataFrame(rows, columns=["person", "film"])
seen.head()

# %% [markdown]
# ## Training
#
# `split="user-holdout"` hides some films of some people and says how well they are found again. The record has
# everything that the command line's `run.json` has.

# %%
model = Recommender.fit(
    seen, memory="400MiB", user="person", item="film", titles=films, factors=16, split="user-holdout"
)
metrics = model.record["results"]["metrics"]
assert metrics["ndcg@10"] > 0.1
metrics["ndcg@10"]

# %% [markdown]
# Predicted before the training began, and measured while it ran, in bytes:

# %%
predicted, measured = model.record["plan"]["predicted_peak_bytes"], model.record["measured"]["peak_bytes"]
assert measured <= 400 * 2**20 and abs(predicted / measured - 1) < 0.15
predicted, measured

# %% [markdown]
# ## Recommendations
#
# For somebody in the data, for several people at once (starting a process takes about half a second, so ask for many),
# and for somebody new by what they have seen.

# %%
best = model.recommend("person 4", k=5)
assert best["title"].str.startswith(genres[4 % 3]).all()
assert not set(best["item"]) & set(seen.query("person == 'person 4'")["film"])
best

# %%
people = [f"person {number}" for number in range(50)]
lists = model.recommend(people, k=5, exclude=[0, 1, 2])
assert len(lists) == 250 and not set(lists["item"]) & {0, 1, 2}
preferred = lists["user"].str.removeprefix("person ").astype(int) % 3 == lists["item"] % 3
assert preferred.mean() > 0.95
lists.head(10)

# %%
new = model.recommend(history=[2, 5, 8], k=3)
assert (new["item"] % 3 == 2).all()
near = model.similar(7, k=3)
assert (near["item"] % 3 == 7 % 3).all()
pd.concat([new, near], keys=["after three musicals", "like film 7"])

# %% [markdown]
# ## What does not fit is refused
#
# At once, with a ceiling that would do.

# %%
try:
    Recommender.fit(seen, memory="50MiB", user="person", item="film")
except DoesNotFit as error:
    refusal = error
assert refusal.smallest_feasible_bytes > 50 * 2**20
print(refusal)

# %%
again = Recommender.fit(seen, memory=refusal.smallest_feasible_bytes, user="person", item="film")
assert again.record["measured"]["peak_bytes"] <= refusal.smallest_feasible_bytes

# %% [markdown]
# ## Keeping it
#
# A model folder serves the command line too: `recsys serve film-model --memory 300MiB`.

# %%
folder = model.save("film-model")
loaded = Recommender.load(folder, memory="300MiB")
assert loaded.recommend("person 4", k=5).equals(best)
loaded
