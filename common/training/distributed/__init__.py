"""Training over several processes, the ranks of PyTorch's launcher, on one machine or more.

Every rank has the whole network and a share of each batch; ``world`` says which rank this process is, ``group`` is how
ranks compute together, ``meeting`` how they agree on a plan before that.
"""
