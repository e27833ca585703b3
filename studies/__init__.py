"""Many runs: what a plan, a probe and a comparison make of them."""
