"""The promise: budget, footprint, planner, meter, guard and record. Imports none of its siblings."""
