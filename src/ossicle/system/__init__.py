"""LightningModules that train what is composed."""
