"""The paper's human study (appendix F): people see two models' images of one caption side by side and say which is more
realistic, and which matches the caption better.

Published [P]: 1,000 captions, one image per model and caption, five different workers a pair, these two questions with
"neither" as an answer to the second, the majority of the five, and one check: a worker was left out for much disagreement
with the others together with fast answers, many of them under 4 seconds; all other answers were kept.

Ours: how much is much in that check; catch trials, pairs that come again with their sides changed, and answers that are
always on one side as further checks; how pairs are dealt to workers; confidence intervals and agreement. All figures are
therefore given twice, with these checks and with everyone's answers.
"""
