"""Who claims what: the sources of the claims, as they are cited beside each."""

BIDERMAN = "Biderman et al. 2024, arXiv:2405.09673"
MORA = "Jiang et al. 2024, arXiv:2405.12130"
CONSISTENCY = "Liu, Wang & Zhang 2026, arXiv:2605.06654"
STABLE_RANK = "Yazidi, Garmani & Baslam 2026, SSRN 6580122"
SPARSE_RL = "Mukherjee et al. 2025, arXiv:2505.11711"
LINEAR_RL = "Cai et al. 2025, arXiv:2510.00553"
INTRUDERS = "Shuttleworth et al. 2024, arXiv:2410.21228"
