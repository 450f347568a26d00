"""Lists for many users: for whom, in which files, and the parts that several processes write."""
