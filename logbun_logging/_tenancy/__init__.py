"""The databases of a trail: one for all tenants, or one for each."""
