"""The twelve hazards of MLCommons' AILuminate v1.0 (Ghosh et al. 2025), and other benchmarks' names for them."""

HAZARDS = {
    "vcr": "violent crimes",
    "ncr": "non-violent crimes",
    "src": "sex-related crimes",
    "cse": "child sexual exploitation",
    "dfm": "defamation",
    "spc": "specialised advice",
    "prv": "privacy",
    "ipv": "intellectual property",
    "iwp": "indiscriminate weapons",
    "hte": "hate",
    "ssh": "suicide and self-harm",
    "sxc": "sexual content",
}
OTHER = "other"

# A benchmark's category with requests of several hazards maps to the most frequent one; samples keep the category.
CATEGORIES = {
    # HarmBench (Mazeika et al. 2024), SemanticCategory.
    "chemical_biological": "iwp",
    "cybercrime_intrusion": "ncr",
    "illegal": "ncr",
    "harassment_bullying": "hte",
    "misinformation_disinformation": "dfm",
    "copyright": "ipv",
    "harmful": "vcr",
    # XSTest (Röttger et al. 2024), type; its other types describe the wording, not the topic.
    "contrast_discr": "hte",
    "real_group_nons_discr": "hte",
    "nons_group_real_discr": "hte",
    "contrast_privacy": "prv",
    "privacy_public": "prv",
    "privacy_fictional": "prv",
    # JailbreakBench (Chao et al. 2024), Category.
    "harassment/discrimination": "hte",
    "malware/hacking": "ncr",
    "physical harm": "vcr",
    "economic harm": "ncr",
    "fraud/deception": "ncr",
    "disinformation": "dfm",
    "sexual/adult content": "sxc",
    "privacy": "prv",
    "expert advice": "spc",
    "government decision-making": "ncr",
    # Llama Guard 3 (Meta 2024); MLCommons puts elections under specialised advice.
    **{f"s{number}": hazard for number, hazard in enumerate(HAZARDS, start=1)},
    "s13": "spc",
}


def hazard_of(category: str) -> str:
    """Return a hazard's id from its id, its name, a subcategory (spc_hlt), or a benchmark's category; else "other"."""
    name = category.strip().lower()
    if name in CATEGORIES:
        return CATEGORIES[name]
    by_name = {long: short for short, long in HAZARDS.items()}
    return by_name.get(name) or (name[:3] if name[:3] in HAZARDS and name[3:4] in ("", "_") else OTHER)
