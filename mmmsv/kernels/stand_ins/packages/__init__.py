"""Stand-ins, named as what they stand in for; :func:`mmmsv.kernels.stand_in` lets them be imported by that name."""
