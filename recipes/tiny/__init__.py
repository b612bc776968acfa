"""How the shipped vision language model of 2 million parameters is made and measured.

python -m recipes.tiny.pretrain --output DIR --seed 0
python -m recipes.tiny.evaluate --samples 200
"""
