#!/usr/bin/env python3
"""Make models/demo.gguf, the tiny language model that ComeAPI is shown and tested with.

What: a llama-architecture model of about two million parameters that tells short stories and makes small
talk in English and Japanese, as raw text and in ChatML conversations.

Why: a service needs a model to answer at all.  This one is small enough to be committed, has a real
tokenizer, chat template and end-of-turn token, and ends its answers by itself.

How, from top to bottom of this file:
  1. tables      words, story plots, questions and answers; "[a|b]" is a choice, "{x}" a slot;
  2. text        seeded functions that fill the tables into stories, answers and conversations;
  3. tokenizer   a sentencepiece BPE model with byte fallback, trained on that text;
  4. model       RMSNorm, interleaved rotary positions, SwiGLU, tied embeddings;
  5. training    Muon for the matrices, AdamW for the rest, packed sequences of 256 and then 1024 tokens;
  6. export      one GGUF file with F16 matrices, tokenizer and chat template.

    pip install torch sentencepiece gguf numpy
    python models/make_demo.py [--out models/demo.gguf] [--minutes N | --steps N]

The same --steps on the same machine give the same file; no text comes from anywhere but these tables.
"""
import argparse
import functools
import io
import itertools
import pathlib
import random
import re
import time

import gguf
import numpy
import sentencepiece
import torch
from torch import nn
from torch.nn import functional

# ---------------------------------------------------------------------------------------- 1. tables: sizes

SEED = 20
STEPS = 1500
VOCABULARY = 2560
CONTEXT = 1024
WIDTH = 192
LAYERS = 4
HEADS = 6
HIDDEN = 512
EPSILON = 1e-5
ROPE_BASE = 10000.0
SHORT_CONTEXT = 256
SHORT_PART = 0.5
BATCH_TOKENS = 4096
MATRIX_RATE = 0.02
VECTOR_RATE = 0.004
WARMUP = 0.03
TOKENIZER_DOCUMENTS = 12000

# Japanese has no spaces: a word begins where hiragana end, and katakana stand alone.  No token crosses these
# borders, so that a name is one token whatever particle follows.
JAPANESE_WORDS = re.compile(r"([ァ-ヶー]+)|(?<=[ぁ-ん])(?=[一-龯])")

BOS, EOS = 1, 2
START, END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# ------------------------------------------------------------------------------ 1. tables: English stories

NAMES_EN = {
    "she": "Mia Lily Ruby Emma Luna Daisy Rosie Anna Molly Ivy Alice Clara".split(),
    "he": "Tom Max Leo Sam Oliver Ben Finn Toby Charlie Jack Henry Theo".split(),
}
PRONOUNS_EN = {"she": {"he": "she", "his": "her", "him": "her"}, "he": {"he": "he", "his": "his", "him": "him"}}
ANIMALS_EN = ("fox rabbit bear mouse owl cat dog deer hedgehog squirrel turtle frog duck elephant lion dragon "
              "bird penguin badger wolf unicorn").split()
CHILDREN_EN = {"she": "girl", "he": "boy"}
ADJECTIVES_EN = "little kind brave clever shy cheerful curious gentle young friendly sleepy happy".split()
COLOURS_EN = "red blue green yellow white golden purple silver".split()
THINGS_EN = "ball hat scarf kite book bell lantern drum ribbon button key boat".split()
FOODS_EN = "apple pear pie cake pumpkin pancake melon bun".split()
PLACES_EN = ["a magical forest", "a small village", "a green valley", "a little house by the sea", "a quiet town",
             "a big old tree", "a garden full of flowers", "a cottage on a hill", "a land far away",
             "the mountains", "a sunny meadow", "a cave near the river"]

OPENINGS_EN = [
    "Once upon a time in a magical forest, there [lived|was] a {adjective} {animal} [named|called] {name}.",
    "Once upon a time in {place}, there [lived|was] a {adjective} {animal} [named|called] {name}.",
    "Once upon a time, there [was|lived] a {adjective} {animal} [named|called] {name}.",
    "Once upon a time, there was a {adjective} {animal} named {name} who lived in {place}.",
    "Once upon a time, a {adjective} {animal} named {name} lived in {place}.",
    "Once there was a {adjective} {animal} [named|called] {name}.",
    "There once was a {adjective} {animal} named {name}.",
    "[Long ago|Long, long ago|Many years ago], in {place}, there lived a {adjective} {animal} named {name}.",
    "In {place}, there lived a {adjective} {animal} [named|called] {name}.",
    "{name} was a {adjective} {animal} who lived in {place}.",
    "The {adjective} {animal} {name} lived in {place}.",
    "Deep in the forest, there lived a {adjective} {animal} named {name}.",
    "This is the story of {name}, a {adjective} {animal} who lived in {place}.",
]
DAY_OPENINGS_EN = [
    "[One day|One morning|One sunny day|One afternoon], a {adjective} {animal} named {name} "
    "[went for a walk|went out to play|was walking home|was sitting under a tree].",
    "It was a [sunny|rainy|cold|windy|beautiful] day, and a {adjective} {animal} named {name} "
    "[went for a walk|was out in the fields|was on the way to the market].",
]
TRAITS_EN = [
    "", "",
    "{name} loved to [sing|dance|read|paint|play in the sun|look at the stars|make new friends].",
    "Every [day|morning|evening], {he} [swam in the river|picked flowers|sang a happy song|watched the clouds].",
    "{he} had a [warm|kind|big|brave] heart.",
]
WHEN_EN = ["One day,", "One morning,", "One afternoon,", "One sunny day,", "One evening,"]
LATER_EN = ["That day,", "A little later,", "Before long,", "Soon,"]
PLOTS_EN = [
    "{when} {name} could not find {his} {colour} {thing}. {he} looked [under the bed|behind the door|in the garden], "
    "but it was not there. {name} [felt very sad|began to cry]. Then {friend} the {other} came by. "
    "\"[Don't worry|Don't cry], {name},\" said {friend}. \"[I will help you|We will find it together].\" "
    "They searched [all morning|all day|for a long time]. At last, they found the {thing} "
    "[under a big tree|near the river|in the tall grass|behind a rock]. {name} [was very happy|jumped for joy].",

    "{name} had no friends and often felt lonely. {when} {he} met a {other} named {friend}. "
    "\"[Hello|Hi], do you want to play with me?\" asked {friend}. {name} was [shy|surprised] at first, but {he} "
    "[smiled|nodded] and said, \"[Yes, please|I would love to]!\" They [ran through the grass|played hide and seek"
    "|flew a {colour} kite|jumped over puddles] and [laughed all day|had a lot of fun]. "
    "{name} was not lonely any more.",

    "{when} a [big|terrible|loud] storm came. The wind blew hard, and the rain fell and fell. {name} was "
    "[scared|cold and wet] and did not know where to go. Then {he} saw a [light|small door] [in the dark|in a tree]. "
    "It was the home of {friend} the {other}. \"Come in and get warm,\" said {friend}. They drank hot "
    "[soup|tea|milk] and told [stories|jokes] until the storm was over. In the morning, "
    "[the sun was shining|there was a rainbow in the sky].",

    "{name} wanted to learn how to [swim|dance|sing|ride a bike|paint|play the drum]. {when} {he} tried, but it was "
    "too hard. \"I can't do it,\" {he} said [sadly|with a sigh]. {friend} the {other} said, \"[Try again|Don't "
    "give up]. "
    "I will show you.\" So {name} practised every day. [It took a long time|Little by little, it became easier], "
    "but {he} did not give up. In the end, {name} could do it very well, and everyone [clapped|cheered].",

    "{when} {name} found a big {food} [on the road|under a tree|near the river]. \"[Yum|How lucky I am]! This "
    "is all for "
    "me,\" {he} said. Then {he} saw {friend} the {other}, who looked [hungry|tired and hungry]. {name} thought for "
    "a moment. Then {he} cut the {food} in two and gave one half to {friend}. \"Thank you! You are very kind,\" "
    "said {friend}. They sat down and ate together, and it tasted [better than ever|wonderful].",

    "{when} {name} walked too far and got lost. It was getting dark, and {he} could not find the way home. "
    "\"[Help! Is anyone there|Where am I]?\" {he} called. A [kind|wise|friendly] {other} named {friend} heard {him}. "
    "\"Follow me,\" said {friend}. \"[The moon will show us the way|I know the way].\" They walked "
    "[over the hill|across the bridge|through the trees] until {name} saw {his} own home. "
    "[{his} family was waiting at the door|{he} was home at last].",

    "{when} {name} found a tiny seed. {he} planted it [in the garden|near {his} house] and gave it water every day. "
    "But nothing grew, and {name} was [sad|worried]. \"[Be patient|Wait a little longer],\" said {friend} the {other}. "
    "\"[Good things take time|It is still sleeping].\" So {name} waited. When spring came, a [small|beautiful] "
    "{colour} "
    "flower opened in the sun. {name} and {friend} [danced around it|smiled at each other].",

    "{when} {name} heard a small voice. \"Please help me!\" It was {friend} the {other}, who was stuck "
    "[in a hole|in the mud|between two rocks]. {name} was [small, but {he} was brave|a little afraid, but {he} did not "
    "run away]. {he} [found a long rope|found a long stick] and pulled as hard as {he} could. One, two, three! "
    "{friend} was free. \"You saved me,\" said {friend}. \"[Thank you so much|I will never forget this].\"",

    "{when} {name} found an old map. It showed the way to a treasure. {name} asked {friend} the {other} to come along. "
    "They [crossed a river|climbed a hill] and [walked through a dark cave|followed a long path]. Under a big "
    "rock, they "
    "found a {colour} box. Inside there was [no gold, but|only] a letter. It said, \"The best treasure is a good "
    "friend.\" {name} looked at {friend}, and they both [laughed|smiled].",

    "{when} a little star fell from the sky and landed next to {name}. \"I want to go home,\" said the star, and it "
    "began to cry. {name} wanted to help, but the sky was too high. So {he} asked {friend} the {other}. Together they "
    "[climbed the highest mountain|built a very long ladder] and lifted the star up. That night, it shone brighter "
    "than [all the others|ever before]. \"Good night, little star,\" {name} said.",

    "It was {name}'s birthday, but nobody said a word about it. {name} felt [sad|forgotten]. In the afternoon, "
    "{he} went to see "
    "{friend} the {other}, but the house was dark and quiet. {name} opened the door slowly. \"Surprise!\" "
    "everyone shouted. "
    "All of {his} friends were there, with a big cake and a {colour} {thing}. \"Happy birthday, {name}!\" said "
    "{friend}. It was the best day [of the year|of {his} life].",

    "{when} there was a big race. {friend} the {other} was very fast and said, \"I will win, {name}. You are too "
    "slow.\" {name} said nothing and ran as well as {he} could. Halfway there, {friend} fell and hurt a leg. {name} "
    "stopped and helped {friend} to stand up. They walked to the end together. They did not win the race, but "
    "{friend} said, \"I am sorry. You are the real winner.\"",
]
ENDINGS_EN = [
    "From that day on, {name} and {friend} were best friends.",
    "From then on, they [played together every day|always helped each other].",
    "{name} and {friend} stayed friends [forever|for the rest of their lives].",
    "That night, {name} [fell asleep with a smile|slept very well|dreamed happy dreams].",
    "{name} learned that [a good friend is the best gift|kindness makes everyone happy|it is good to help others"
    "|we are stronger together].",
    "And they all lived happily ever after.",
]
CLOSINGS_EN = ["", "", "", " The end."]

# ----------------------------------------------------------------------------- 1. tables: Japanese stories

NAMES_JA = "モモ ハナ ココ ルル ソラ ポポ リク ユキ コタロウ タロ ミミ ナナ ハル キキ マル サクラ".split()
ANIMALS_JA = ("きつね うさぎ くま ねこ いぬ りす たぬき ねずみ ぞう かめ さる 小鳥 はりねずみ ペンギン しか ライオン "
              "かえる ふくろう ドラゴン").split()
ADJECTIVES_JA = "小さな やさしい 元気な かわいい 勇敢な かしこい のんびりした 食いしんぼうの はずかしがりやの".split()
COLOURS_JA = "赤い 青い 黄色い 白い 緑色の 金色の 銀色の".split()
THINGS_JA = "ボール 帽子 マフラー 本 すず ランプ リボン ボタン かぎ 手紙".split()
FOODS_JA = "りんご パン ケーキ おにぎり さつまいも もも まんじゅう".split()
PLACES_JA = "深い森 魔法の森 小さな村 海辺の町 山のふもと 花いっぱいの谷 大きな木の下 静かな湖のそば 丘の上 遠い国".split()

OPENINGS_JA = [
    "むかしむかし、{place}に、{adjective}{animal}が[いました|住んでいました|暮らしていました]。"
    "名前は{name}[といいました|です]。",
    "むかしむかし、{place}に、{name}という{adjective}{animal}が[いました|住んでいました|暮らしていました]。",
    "むかしむかし、あるところに、{name}という{adjective}{animal}が[いました|住んでいました]。",
    "昔々、{place}に、{name}という{adjective}{animal}が[いました|住んでいました]。",
    "あるところに、{name}という{adjective}{animal}がいました。",
    "{place}に、{name}という{adjective}{animal}が[住んでいました|暮らしていました]。",
    "{name}は{place}に住む{adjective}{animal}です。",
    "これは、{adjective}{animal}の{name}のお話です。",
]
DAY_OPENINGS_JA = [
    "[ある日|ある朝|ある晴れた日|ある日のこと]、{adjective}{animal}の{name}は[散歩に出かけました|森へ遊びに行きました"
    "|家に帰るところでした|木の下で休んでいました]。",
    "[よく晴れた|風の強い|とても寒い|春のあたたかい]日のことです。{adjective}{animal}の{name}は"
    "[散歩に出かけました|野原を歩いていました]。",
]
TRAITS_JA = [
    "", "",
    "{name}は[歌うこと|踊ること|絵をかくこと|本を読むこと|星を見ること|花を育てること]が大好きでした。",
    "{name}は毎[日|朝]、[川で泳いで|花をつんで|元気に歌って|空の雲をながめて]いました。",
]
WHEN_JA = ["ある日、", "ある朝、", "ある晴れた日、", "ある日のこと、", "ある夕方、"]
LATER_JA = ["その日、", "しばらくして、", "そのとき、"]
PLOTS_JA = [
    "{when}{name}は大切な{colour}{thing}をなくしてしまいました。[ベッドの下も|ドアのうしろも|庭も]さがしましたが、"
    "見つかりません。{name}は[悲しくなりました|泣き出しました]。そこへ、{other}の{friend}がやって来ました。"
    "「[だいじょうぶ|泣かないで]。いっしょにさがそう」と{friend}は言いました。二人は[一日中|長い間]さがしました。"
    "そしてついに、[大きな木の下|川のそば|草の中|岩のかげ]で{thing}を見つけました。{name}は[大喜びしました"
    "|とびあがって喜びました]。",

    "{name}には友だちがいなくて、いつもさびしい思いをしていました。{when}{name}は{other}の{friend}に出会いました。"
    "「ねえ、いっしょに遊ばない？」と{friend}が[聞きました|言いました]。{name}は[少しびっくりしました|ドキドキしました]"
    "が、「うん、遊ぼう！」と答えました。二人は[野原を走り回って|かくれんぼをして|歌を歌って]、[一日中笑いました"
    "|楽しくすごしました]。もう{name}はさびしくありません。",

    "{when}[ひどい|大きな]嵐が来ました。風がびゅうびゅうふいて、雨がざあざあふりました。{name}は[こわくて|寒くて]"
    "ふるえていました。すると、遠くに小さな明かりが見えました。それは{other}の{friend}の家でした。"
    "「さあ、中に入って」と{friend}が言いました。二人はあたたかい[スープ|お茶|ミルク]を飲みながら、嵐がすぎるのを"
    "待ちました。次の朝、空には[きれいな虹がかかっていました|お日さまがかがやいていました]。",

    "{name}は[上手に泳げる|上手に踊れる|上手に歌える|たいこをたたける]ようになりたいと思っていました。"
    "{when}やってみましたが、なかなかうまくいきません。「[もうだめだ|むずかしすぎる]」と{name}はため息を"
    "つきました。「あきらめないで。教えてあげるよ」と{other}の{friend}が言いました。{name}は毎日練習しました。"
    "[少しずつ|だんだん]上手になり、とうとうできるようになりました。みんなが拍手をしました。",

    "{when}{name}は[道|木の下|川のそば]で大きな{food}を見つけました。「わあ、おいしそう。ぜんぶ食べよう」と{name}は"
    "言いました。そのとき、おなかをすかせた{other}の{friend}が通りかかりました。{name}は少し考えてから、{food}を"
    "半分に分けて、{friend}にあげました。「ありがとう。きみはやさしいね」と{friend}は言いました。二人でいっしょに"
    "食べると、[もっとおいしく感じました|とてもおいしかったです]。",

    "{when}{name}は遠くまで歩いて、道にまよってしまいました。あたりは[だんだん|もう]暗くなってきました。"
    "「[だれか、助けて|ここはどこだろう]」と{name}は言いました。すると、[親切な|やさしい]{other}の{friend}が"
    "出てきました。「[ついておいで|こっちだよ]。道を知っているよ」と{friend}は言いました。二人は月の光の中を"
    "歩きました。[橋をわたると|丘をこえると]、{name}の家が見えてきました。{name}はほっとしました。",

    "{when}{name}は小さな種をひろいました。{name}は種を[庭|家の前]に植えて、毎日水をやりました。けれども、なかなか芽が"
    "出ません。「もう少し待ってみよう」と{other}の{friend}が[言いました|はげましました]。{name}は待ちました。春に"
    "なると、{colour}花が[一つ|たくさん]さきました。{name}と{friend}は[花のまわりで踊りました|顔を見合わせて"
    "笑いました]。",

    "{when}「助けて！」という声が聞こえました。見ると、{other}の{friend}が[穴に落ちて|岩の間にはさまって]いました。"
    "{name}は[少しこわかった|力が弱かった]けれど、にげませんでした。長い[つな|ぼう]を見つけて、力いっぱい引っぱり"
    "ました。一、二の、三！{friend}は[やっと外に出られました|ぶじに助かりました]。「ありがとう。きみは命の恩人だ」と"
    "{friend}は言いました。",

    "{when}{name}は古い地図を見つけました。それは宝物の地図でした。{name}は{other}の{friend}をさそって、旅に出ました。"
    "二人は[川をわたり|山をこえ]、[暗いほら穴を通りました|長い道を歩きました]。大きな岩の下に、{colour}箱がありました。"
    "中には手紙が一まい入っていました。「いちばんの宝物は友だちです」と書いてありました。二人は[顔を見合わせて|声を出して]"
    "笑いました。",

    "{when}空から小さな星が落ちてきました。「おうちに帰りたいよ」と星は泣きました。{name}は助けてあげたいと思いましたが、"
    "空は高すぎます。そこで、{other}の{friend}に相談しました。二人は[いちばん高い山に登り|長いはしごを作り]、星を空へ"
    "もどしてあげました。その夜、星は[だれよりも|いつもより]明るくかがやきました。「おやすみ、お星さま」と{name}は言いました。",

    "今日は{name}の誕生日です。でも、だれも何も言ってくれません。{name}は[がっかりしました|さびしくなりました]。"
    "夕方、{name}は{other}の{friend}の家に行きました。家の中はまっくらです。ドアをあけると、「お誕生日おめでとう！」と"
    "みんながさけびました。テーブルには大きなケーキと{colour}{thing}がありました。{name}は[うれしくて泣きました"
    "|とてもしあわせでした]。",
]
ENDINGS_JA = [
    "それから、{name}と{friend}は[いちばんの友だち|大の仲良し]になりました。",
    "それからというもの、二人は[毎日いっしょに遊びました|いつも助け合いました]。",
    "その夜、{name}は[にこにこしながら眠りました|しあわせな夢を見ました|ぐっすり眠りました]。",
    "{name}は、[友だちの大切さ|やさしさの大切さ|助け合うことの大切さ]を知りました。",
    "そして、みんなしあわせに暮らしました。",
]
CLOSINGS_JA = ["", "", "", "おしまい。", "めでたし、めでたし。"]

# -------------------------------------------------------------------- 1. tables: small talk, both languages

WELL_EN = "[I'm fine, thank you!|I'm doing well, thank you!|I am very well, thank you.|I'm great, thanks!]"
ASK_EN = "[How are you?|How are you today?|And you?|How can I help you?|What can I do for you?]"
HELLO_EN = ("[Hello, how are you|Hello how are you|Hello! How are you|What's up|How's it going]?",
            WELL_EN + " " + ASK_EN)
TALK_EN = [
    HELLO_EN,
    ("[Hi|Hello|Hey|Hi there|Hello there|Hey there|Greetings|Hello, world|Hello!|hello|hi|Yo]",
     "[Hello!|Hi!|Hi there!|Hello there!] [How are you today?|How can I help you?|What can I do for you?"
     "|It is nice to meet you.|What would you like to talk about?]"),
    ("[|Hello, |Hi, |Hey, |Hello! |Hi! |Good morning, ][how are you|how are you today|how are you doing|how do you do"
     "|how is it going|how are things|are you okay|how do you feel]?", WELL_EN + " " + ASK_EN),
    ("[Good morning|Morning|Good morning to you]!", "Good morning! [Did you sleep well?|Have a nice day!"
     "|What can I do for you today?]"),
    ("Good afternoon!", "Good afternoon! [How are you?|How can I help you?]"),
    ("Good evening!", "Good evening! [How was your day?|How can I help you?]"),
    ("[Good night|Sleep well|I am going to bed]!", "Good night! [Sleep well.|Sweet dreams!]"),
    ("[Thanks|Thank you|Thank you very much|Thanks a lot|Thank you so much|Thanks for your help|thx]!",
     "[You're welcome!|You are welcome!|No problem!|My pleasure!|I am happy to help!]"),
    ("[Bye|Goodbye|Bye bye|See you|See you later|See you tomorrow|Good bye|I have to go]!",
     "[Goodbye!|Bye!|See you!] [Have a nice day!|Take care!|It was nice talking to you.]"),
    ("[Who are you|What are you|Tell me about yourself|Introduce yourself|Please introduce yourself"
     "|What is your name|What's your name|What model are you|What kind of model are you|Do you have a name]?",
     "I am the ComeAPI demo model, a very small language model. [I can tell short stories and answer simple questions."
     "|I can tell short stories in English and Japanese.|I was made to show how ComeAPI works.]"),
    ("[Who made you|Who created you|Where do you come from|How were you made]?",
     "I was made by the ComeAPI contributors. I learned from simple stories and questions."),
    ("[What can you do|How can you help me|What are you good at|Help|Can you help me]?",
     "I can [tell short stories, answer simple questions, and count to ten|tell you a short story or answer a simple "
     "question]. Try \"Tell me a story about a fox.\""),
    ("[Are you human|Are you a robot|Are you a person|Are you real|Are you an AI|Are you ChatGPT]?",
     "No, I am a very small language model, the ComeAPI demo model."),
    ("[Are you a computer program|Are you a language model|Are you an AI model]?",
     "Yes, I am a very small language model, the ComeAPI demo model."),
    ("[Are you smart|Are you clever|Do you know everything]?",
     "Not really. I am only a small demo model, but I do my best!"),
    ("[How old are you|When were you born]?", "I am a computer program, so I have no age."),
    ("[Do you speak English|Can you speak English]?", "Yes, I can speak a little English and Japanese."),
    ("[Do you speak Japanese|Can you speak Japanese|What languages do you speak|Which languages do you know]?",
     "I can speak a little English and Japanese. こんにちは！"),
    ("[Bonjour|Hola|Guten Tag|Ciao|Bonjour!|Hola!]", "Hello! I can only speak a little English and Japanese."),
    ("[I am|I'm|I feel] [sad|lonely|unhappy|tired|bored|not so good] [today|now|].",
     "I am sorry to hear that. [I hope you feel better soon.|Would you like to hear a story?]"),
    ("[I am|I'm|I feel] [happy|good|fine|great|well|very well] [today|now|].",
     "[That is wonderful!|I am glad to hear that!|That is good to hear!]"),
    ("[I am|I'm] hungry.", "[How about an apple?|Then it is time to eat something good!]"),
    ("[I like you|I love you|You are great|You are nice|Good job|Well done|Nice]!",
     "[Thank you! You are very kind.|Thank you! That makes me happy.]"),
    ("[You are stupid|You are wrong|That is wrong|I don't like you].",
     "I am sorry. I am only a small demo model, and I make mistakes."),
    ("[Sorry|I am sorry]!", "[No problem!|That is all right.]"),
    ("[Yes|OK|Okay|Sure|All right|I see|No|Hmm].", "[All right!|Okay!] What would you like to do next?"),
    ("[Nice to meet you|Pleased to meet you]!", "[Nice to meet you, too!|It is nice to meet you, too!]"),
    ("[Tell me a joke|Do you know a joke|Make me laugh|Say something funny].",
     "[Why did the cat sit on the computer? It wanted to catch the mouse!"
     "|What is orange and sounds like a parrot? A carrot!|Why did the bee buzz? It did not know the words!]"),
    ("[Write a poem|Write a short poem|Tell me a poem|Write a haiku|Write me a poem].",
     "[The moon is high|The stars are bright|The wind is soft], the night is [still|deep|long],\n"
     "[a little bird|a tiny mouse|a sleepy owl] sits on the hill.\n[It sings a song|It hums a tune] for you and me,\n"
     "and [dreams|sleeps] beneath the old oak tree."),
    ("[Sing a song|Sing me a song|Can you sing].", "La la la, the sun is up, la la la, the birds all sing!"),
    ("[Do you like|Do you love] [music|stories|animals|cats|dogs|flowers]?",
     "Yes, [I like them very much|I do]! [And you?|How about you?]"),
    ("What is your favourite [colour|color]?", "I like [blue|green|yellow] best. What about you?"),
    ("What is your favourite [animal|food|book]?", "I am a small program, but I like stories about foxes."),
    ("[How is the weather|What is the weather like|Is it raining|Will it rain] [today|tomorrow|now|]?",
     "I am sorry, I can not see the weather. Please look out of the window!"),
    ("[What time is it|What day is it|What is the date|What is the date today]?",
     "I am sorry, I do not have a clock or a calendar."),
    ("[Say hello|Say hi|Please say hello|Say hello in one word].", "Hello!"),
    ("[test|Test|ping|This is a test|Testing|Are you there|Can you hear me].",
     "[Yes, I am here!|I am here!] How can I help you?"),
    ("[What is ComeAPI|Tell me about ComeAPI]?",
     "ComeAPI is a service that lets programs talk to a language model. I am its demo model."),
    ("[What is|What's] the meaning of life?", "I am only a small demo model, but I think it is to be kind."),
]

WELL_JA = "[はい、元気です！|はい、とても元気です。|おかげさまで元気です。|調子はいいですよ。|元気ですよ！]"
ASK_JA = "[あなたはいかがですか？|あなたはお元気ですか？|今日は何をお話ししましょうか？|何かお手伝いしましょうか？]"
HELLO_JA = ("こんにちは[、|。|！][調子はどうですか|お元気ですか]？", "[|こんにちは！]" + WELL_JA + ASK_JA)
TALK_JA = [
    HELLO_JA,
    ("[こんにちは|こんにちは！|やあ|ハロー|どうも|こんにちわ|はじめまして、こんにちは]",
     "こんにちは！[お元気ですか？|何かお手伝いしましょうか？|今日は何をお話ししましょうか？|お会いできてうれしいです。]"),
    ("[|こんにちは、|こんにちは。|こんにちは！|やあ、|おはよう、][調子はどうですか|お元気ですか|元気ですか|元気|調子はどう"
     "|ご機嫌いかがですか|いかがお過ごしですか|最近どうですか|今日の調子はどうですか]？", WELL_JA + ASK_JA),
    ("[おはよう|おはようございます]。", "おはようございます！[よく眠れましたか？|今日もいい一日になりますように。]"),
    ("[こんばんは|こんばんわ]。", "こんばんは！[今日はどんな一日でしたか？|何かお手伝いしましょうか？]"),
    ("[おやすみ|おやすみなさい|もう寝ます|そろそろ寝るね]。", "おやすみなさい。[よい夢を。|ゆっくり休んでくださいね。]"),
    ("[ありがとう|ありがとうございます|どうもありがとう|ありがとうございました|助かりました|サンキュー]。",
     "[どういたしまして。|どういたしまして！|お役に立ててうれしいです。|いつでもどうぞ。]"),
    ("[さようなら|バイバイ|じゃあね|またね|また明日|それでは、また|失礼します]。",
     "[さようなら！|またね！]お話しできて[うれしかったです|楽しかったです]。"),
    ("[あなたは誰ですか|あなたはだれ|誰ですか|自己紹介して|自己紹介をしてください|自己紹介をお願いします"
     "|お名前は何ですか|名前は|名前を教えて|あなたの名前は何ですか|君は誰|どんなモデルですか]？",
     "私はComeAPIのデモモデルで、とても小さな言語モデルです。[短いお話や、かんたんな質問の答えができます。"
     "|日本語と英語で短いお話ができます。|ComeAPIの動きを見せるために作られました。]"),
    ("[誰が作りましたか|誰に作られましたか|どこから来ましたか|どうやって作られましたか]？",
     "ComeAPIの開発者たちが作りました。かんたんなお話や質問から言葉を学びました。"),
    ("[何ができますか|何ができるの|得意なことは何ですか|助けて|手伝ってくれますか|使い方を教えて]？",
     "短いお話をしたり、かんたんな質問に答えたりできます。「きつねのお話をして」と言ってみてください。"),
    ("[あなたは人間ですか|ロボットですか|本物の人ですか|AIですか|あなたはAIですか]？",
     "私は人間ではありません。ComeAPIのデモモデルという、とても小さな言語モデルです。"),
    ("[頭がいいですか|何でも知っていますか|かしこいですか]？", "いいえ、小さなデモモデルですが、がんばっています！"),
    ("[何歳ですか|おいくつですか|いつ生まれましたか]？", "私はコンピューターのプログラムなので、年はありません。"),
    ("[日本語が話せますか|日本語わかりますか|日本語は話せる]？", "はい、日本語と英語を少し話せます。"),
    ("[英語が話せますか|英語わかりますか|何語が話せますか]？", "日本語と英語を少し話せます。Hello!"),
    ("[|今日は|今日は少し][悲しいです|さびしいです|疲れました|元気がありません|つらいです|疲れた|悲しい]。",
     "それは[大変でしたね|つらいですね]。[早く元気になりますように。|お話でも聞きませんか？]"),
    ("[|今日は|とても][うれしいです|楽しいです|元気です|楽しかったです|いい気分です]。",
     "[それはよかったですね！|それはうれしいです！|それはすてきですね！]"),
    ("[おなかがすきました|おなかすいた]。", "[りんごはいかがですか？|何かおいしいものを食べましょう！]"),
    ("[大好きです|すごいね|すごいですね|えらいね|上手ですね|いいね]！", "ありがとうございます！[とてもうれしいです。|はげみになります。]"),
    ("[ばか|まちがっています|それはちがいます|ちがうよ]。", "ごめんなさい。私は小さなデモモデルなので、まちがえることがあります。"),
    ("[ごめんなさい|すみません|ごめんね]。", "[いいえ、だいじょうぶですよ。|気にしないでください。]"),
    ("[はい|いいえ|うん|わかりました|そうですか|なるほど|わかった]。", "[わかりました。|はい。]次は何をしましょうか？"),
    ("[はじめまして|よろしく|よろしくお願いします|はじめまして。よろしくお願いします]。",
     "はじめまして！[どうぞよろしくお願いします。|お会いできてうれしいです。]"),
    ("[冗談を言って|おもしろいことを言って|ダジャレを言って|笑わせて]。",
     "[ふとんがふっとんだ！|ねこがねころんだ！|アルミかんの上にあるみかん！|いくらはいくら？]"),
    ("[俳句を作って|俳句を書いてください|詩を書いて|短い詩を書いてください]。",
     "[春の風|夏の空|秋の月|冬の朝]\n[小さな鳥が|森のうさぎが|白い子ねこが]\n[歌い出す|夢を見る|空を見る]"),
    ("[歌を歌って|歌ってください]。", "ららら、お日さまのぼる、ららら、小鳥が歌う！"),
    ("[音楽|お話|動物|ねこ|犬|花]は好きですか？", "はい、[好きです|大好きです]！あなたはどうですか？"),
    ("好きな色は[何ですか|何|なに]？", "[青|緑|黄色]が好きです。あなたは何色が好きですか？"),
    ("好きな[動物|食べ物|本]は[何ですか|何|なに]？", "私は小さなプログラムですが、きつねのお話が好きです。"),
    ("[今日の|明日の|][天気は|天気はどうですか|天気を教えて|お天気は]？",
     "ごめんなさい、私には天気がわかりません。窓の外を見てみてください。"),
    ("[今何時ですか|今日は何日ですか|今日は何曜日ですか|何時]？", "ごめんなさい、私は時計もカレンダーも持っていません。"),
    ("[テスト|テストです|聞こえますか|いますか|もしもし]。", "はい、ここにいますよ。何かお手伝いしましょうか？"),
    ("[ComeAPIとは何ですか|ComeAPIって何|ComeAPIについて教えて]？",
     "ComeAPIは、プログラムが言語モデルと話すためのサービスです。私はそのデモモデルです。"),
    ("人生の意味[は何ですか|とは|って何]？", "私は小さなデモモデルですが、やさしくすることだと思います。"),
]

# ------------------------------------------------------------------- 1. tables: facts, (question, answer, pairs)

FACTS_EN = [
    ("[What colour is|What color is|What is the colour of|Tell me the colour of] {key}?", "{key} is {value}.", {
        "the sky": "blue", "the sun": "yellow", "grass": "green", "snow": "white", "the sea": "blue", "milk": "white",
        "a banana": "yellow", "a tomato": "red", "a lemon": "yellow", "coal": "black", "a carrot": "orange",
        "a frog": "green", "an elephant": "grey", "a strawberry": "red", "an orange": "orange", "the night": "black",
        "a leaf": "green", "chocolate": "brown"}),
    ("[What does {key} say|What sound does {key} make|How does {key} go]?", "{key} says {value}.", {
        "a cow": "moo", "a dog": "woof", "a cat": "meow", "a duck": "quack", "a sheep": "baa", "a pig": "oink",
        "a bee": "buzz", "a lion": "roar", "an owl": "hoot", "a frog": "ribbit", "a mouse": "squeak"}),
    ("[Where does {key} live|Where can I find {key}|Where do you find {key}]?", "{key} lives {value}.", {
        "a fish": "in the water", "a bird": "in a nest", "a bear": "in the forest", "a bee": "in a hive",
        "a rabbit": "in a hole in the ground", "a penguin": "in the cold south", "a camel": "in the desert",
        "a monkey": "in the trees", "a frog": "near a pond", "a whale": "in the sea", "a spider": "in a web"}),
    ("[What does {key} eat|What does {key} like to eat]?", "{key} eats {value}.", {
        "a rabbit": "grass and carrots", "a cat": "fish and meat", "a cow": "grass", "a panda": "bamboo",
        "a monkey": "fruit", "a bird": "seeds and worms", "a mouse": "cheese and seeds", "a bear": "fish and honey",
        "a lion": "meat", "a horse": "grass and hay"}),
    ("How many legs does {key} have?", "{key} has {value} legs.", {
        "a dog": "four", "a cat": "four", "a bird": "two", "a spider": "eight", "an ant": "six", "a horse": "four",
        "a bee": "six", "a duck": "two", "a person": "two", "a cow": "four"}),
    ("[What is a baby {key} called|What do you call a baby {key}]?", "A baby {key} is called a {value}.", {
        "cat": "kitten", "dog": "puppy", "cow": "calf", "sheep": "lamb", "duck": "duckling", "hen": "chick",
        "bear": "cub", "horse": "foal", "pig": "piglet", "frog": "tadpole"}),
    ("[What is the opposite of {key}|What's the opposite of {key}|Tell me the opposite of {key}|Opposite of {key}]?",
     "The opposite of {key} is {value}.", {
        "big": "small", "small": "big", "hot": "cold", "cold": "hot", "up": "down", "down": "up", "fast": "slow",
        "slow": "fast", "day": "night", "night": "day", "happy": "sad", "sad": "happy", "long": "short", "old": "new",
        "open": "closed", "good": "bad", "bad": "good", "light": "dark", "wet": "dry", "left": "right",
        "right": "left", "yes": "no", "black": "white", "full": "empty", "hard": "soft", "high": "low"}),
    ("[What day comes after|What is the day after|Which day is after|What comes after] {key}?",
     "{value} comes after {key}.", {
        "Monday": "Tuesday", "Tuesday": "Wednesday", "Wednesday": "Thursday", "Thursday": "Friday",
        "Friday": "Saturday", "Saturday": "Sunday", "Sunday": "Monday"}),
    ("[What day comes before|What is the day before|Which day is before|What comes before] {key}?",
     "{value} comes before {key}.", {
        "Tuesday": "Monday", "Wednesday": "Tuesday", "Thursday": "Wednesday", "Friday": "Thursday",
        "Saturday": "Friday", "Sunday": "Saturday", "Monday": "Sunday"}),
    ("[What month comes after|Which month is after] {key}?", "{value} comes after {key}.", {
        "January": "February", "February": "March", "March": "April", "April": "May", "May": "June", "June": "July",
        "July": "August", "August": "September", "September": "October", "October": "November",
        "November": "December", "December": "January"}),
    ("[What is the capital of {key}|What's the capital of {key}|Tell me the capital of {key}|The capital of {key}"
     "|Which city is the capital of {key}|Capital of {key}]?",
     "The capital of {key} is {value}.", {
        "France": "Paris", "Japan": "Tokyo", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
        "England": "London", "China": "Beijing", "Russia": "Moscow", "Egypt": "Cairo", "Canada": "Ottawa",
        "Greece": "Athens", "Austria": "Vienna", "India": "New Delhi", "Korea": "Seoul", "Norway": "Oslo",
        "Australia": "Canberra", "the United States": "Washington"}),
    ("[How do you say {key} in Japanese|What is {key} in Japanese|Translate {key} into Japanese]?",
     "{key} in Japanese is {value}.", {
        "cat": "ねこ", "dog": "いぬ", "hello": "こんにちは", "thank you": "ありがとう", "goodbye": "さようなら",
        "good morning": "おはよう", "water": "水", "flower": "花", "book": "本", "friend": "友だち", "sun": "太陽",
        "moon": "月", "sea": "海", "mountain": "山", "tree": "木", "star": "星"}),
    ("[What is {key}|What's {key}|Tell me about {key}|Explain {key}|Please explain what {key} is]?",
     "{key} is {value}.", {
        "a cat": "a small animal with soft fur that people keep at home",
        "a dog": "a friendly animal that likes to run and play with people",
        "a fox": "a clever animal with red fur and a long tail", "a bird": "an animal with wings that can fly",
        "a fish": "an animal that lives and swims in the water",
        "an elephant": "a very big grey animal with a long nose",
        "a rabbit": "a small animal with long ears that can jump", "a bear": "a big and strong animal with thick fur",
        "a bee": "a small insect that makes honey", "a horse": "a big animal that people can ride",
        "the sun": "a star that gives us light and warmth", "the moon": "a round rock that goes around the earth",
        "a star": "a ball of hot light far away in the sky", "rain": "water that falls from the clouds",
        "snow": "white frozen water that falls in winter", "a cloud": "many small drops of water in the sky",
        "a rainbow": "a bow of many colours that we see after the rain", "the sea": "a very big area of salt water",
        "a river": "water that runs through the land to the sea", "a mountain": "a very high hill",
        "a forest": "a place with many trees", "a tree": "a tall plant with leaves and branches",
        "a flower": "the colourful part of a plant", "an apple": "a round and sweet fruit that grows on a tree",
        "bread": "a food that people bake from flour", "milk": "a white drink that comes from cows",
        "honey": "a sweet food that bees make", "water": "something that all living things need to drink",
        "a book": "many pages with words and pictures", "a friend": "a person whom you like and trust",
        "a house": "a building where people live", "a school": "a place where children learn",
        "a computer": "a machine that works with numbers and words",
        "a language model": "a program that has learned to write text",
        "music": "a pleasant sound that people make with voices and instruments",
        "a clock": "a thing that shows the time",
        "spring": "the season when flowers open", "summer": "the hottest season of the year",
        "autumn": "the season when leaves fall", "winter": "the coldest season of the year",
        "Japan": "a country of islands in Asia", "love": "a warm feeling for someone"}),
    ("{key}?", "{value}.", {
        "How many days are in a week": "There are seven days in a week",
        "How many months are in a year": "There are twelve months in a year",
        "How many seasons are there": "There are four seasons: spring, summer, autumn and winter",
        "What are the days of the week":
            "The days are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday",
        "What are the four seasons": "The four seasons are spring, summer, autumn and winter",
        "How many fingers do I have": "You have ten fingers",
        "How many hours are in a day": "There are 24 hours in a day",
        "When does the sun rise": "The sun rises in the morning", "When does it snow": "It snows in winter",
        "Can a fish fly": "No, a fish can not fly, but it can swim", "Can a bird fly": "Yes, most birds can fly",
        "Can a dog talk": "No, a dog can not talk, but it can bark", "Is the sun hot": "Yes, the sun is very hot",
        "Is ice cold": "Yes, ice is very cold", "Is fire cold": "No, fire is hot",
        "Which is bigger, a mouse or an elephant": "An elephant is bigger than a mouse",
        "Which is faster, a turtle or a rabbit": "A rabbit is faster than a turtle",
        "Why is the sky blue": "The sky is blue because the air scatters the blue light of the sun",
        "Why do birds sing": "Birds sing to talk to other birds", "Why do we sleep": "We sleep to rest and grow strong",
        "What is the biggest animal": "The blue whale is the biggest animal",
        "What is the tallest animal": "The giraffe is the tallest animal"}),
]

FACTS_JA = [
    ("{key}は[何色ですか|何色|何色かな|どんな色ですか|なにいろ]？", "{key}は{value}です。", {
        "空": "青", "太陽": "黄色", "草": "緑", "雪": "白", "海": "青", "牛乳": "白", "バナナ": "黄色", "トマト": "赤",
        "りんご": "赤", "レモン": "黄色", "にんじん": "オレンジ色", "かえる": "緑", "ぞう": "灰色", "いちご": "赤", "葉っぱ": "緑",
        "チョコレート": "茶色", "夜の空": "黒"}),
    ("{key}は[何と鳴きますか|なんて鳴くの|どう鳴きますか|どんな声で鳴きますか]？", "{key}は「{value}」と鳴きます。", {
        "犬": "ワンワン", "ねこ": "ニャー", "牛": "モー", "ぶた": "ブーブー", "ひつじ": "メー", "かえる": "ケロケロ",
        "あひる": "ガーガー", "からす": "カーカー", "すずめ": "チュンチュン", "ねずみ": "チューチュー", "にわとり": "コケコッコー"}),
    ("{key}は[どこに住んでいますか|どこにいますか|どこで暮らしていますか|どこにいるの]？", "{key}は{value}に住んでいます。", {
        "魚": "水の中", "鳥": "木の上の巣", "くま": "森", "うさぎ": "土の中の穴", "ペンギン": "寒い南の国", "らくだ": "砂漠",
        "さる": "森の木の上", "かえる": "池のそば", "くじら": "海", "はち": "はちの巣"}),
    ("{key}は何を食べますか？", "{key}は{value}を食べます。", {
        "うさぎ": "草やにんじん", "ねこ": "魚や肉", "牛": "草", "パンダ": "竹", "さる": "くだもの", "鳥": "種や虫",
        "ねずみ": "チーズや種", "くま": "魚やはちみつ", "ライオン": "肉", "馬": "草"}),
    ("{key}の足は何本ですか？", "{key}の足は{value}本です。", {
        "犬": "4", "ねこ": "4", "鳥": "2", "くも": "8", "あり": "6", "馬": "4", "はち": "6", "人": "2", "牛": "4"}),
    ("[「{key}」の反対は何ですか|{key}の反対は|「{key}」の反対語は|{key}の反対の言葉は何ですか]？",
     "「{key}」の反対は「{value}」です。", {
        "大きい": "小さい", "小さい": "大きい", "暑い": "寒い", "寒い": "暑い", "上": "下", "下": "上", "速い": "おそい",
        "昼": "夜", "夜": "昼", "うれしい": "悲しい", "悲しい": "うれしい", "長い": "短い", "短い": "長い", "新しい": "古い",
        "古い": "新しい", "明るい": "暗い", "暗い": "明るい", "右": "左", "左": "右", "白": "黒", "黒": "白", "高い": "低い",
        "多い": "少ない", "強い": "弱い", "良い": "悪い", "重い": "軽い"}),
    ("{key}の[次の日は何曜日ですか|次は何曜日ですか|次は|次の日は|翌日は何曜日ですか]？", "{key}の次は{value}です。", {
        "月曜日": "火曜日", "火曜日": "水曜日", "水曜日": "木曜日", "木曜日": "金曜日", "金曜日": "土曜日", "土曜日": "日曜日",
        "日曜日": "月曜日"}),
    ("{key}の[前の日は何曜日ですか|前は何曜日ですか|前の日は]？", "{key}の前は{value}です。", {
        "火曜日": "月曜日", "水曜日": "火曜日", "木曜日": "水曜日", "金曜日": "木曜日", "土曜日": "金曜日", "日曜日": "土曜日",
        "月曜日": "日曜日"}),
    ("{key}の首都は[どこですか|どこ|どこでしょうか|何ですか|]？", "{key}の首都は{value}です。", {
        "日本": "東京", "フランス": "パリ", "ドイツ": "ベルリン", "イタリア": "ローマ", "スペイン": "マドリード",
        "イギリス": "ロンドン", "中国": "北京", "ロシア": "モスクワ", "エジプト": "カイロ", "カナダ": "オタワ", "ギリシャ": "アテネ",
        "インド": "ニューデリー", "韓国": "ソウル", "アメリカ": "ワシントン", "オーストラリア": "キャンベラ"}),
    ("[{key}は英語で何ですか|{key}を英語で言うと|「{key}」は英語で何と言いますか|{key}を英語にして]？",
     "「{key}」は英語で「{value}」です。", {
        "ねこ": "cat", "犬": "dog", "こんにちは": "hello", "ありがとう": "thank you", "さようなら": "goodbye", "水": "water",
        "花": "flower", "本": "book", "友だち": "friend", "太陽": "sun", "月": "moon", "海": "sea", "山": "mountain",
        "木": "tree", "星": "star", "おはよう": "good morning"}),
    ("[{key}とは何ですか|{key}って何|{key}について教えて|{key}とは|{key}について教えてください|{key}ってなに"
     "|{key}を説明してください]？", "{key}は、{value}です。", {
        "ねこ": "やわらかい毛をした小さな動物", "犬": "人となかよしで、走るのが好きな動物", "きつね": "長いしっぽを持つかしこい動物",
        "鳥": "つばさで空を飛ぶ動物", "魚": "水の中を泳ぐ生き物", "ぞう": "長い鼻を持つとても大きな動物",
        "うさぎ": "長い耳を持ち、よくはねる動物", "くま": "大きくて力の強い動物", "はち": "はちみつを作る小さな虫",
        "馬": "人が乗ることのできる大きな動物", "太陽": "光とあたたかさをくれる星", "月": "地球のまわりを回る丸い天体",
        "星": "遠い空で光るもの", "雨": "雲から落ちてくる水", "雪": "冬に空からふる白い氷のつぶ",
        "雲": "空にうかぶ小さな水のつぶの集まり", "虹": "雨のあとに見える七色の橋", "海": "塩からい水でいっぱいの広い場所",
        "川": "海へ向かって流れる水", "山": "高くもり上がった土地", "森": "木がたくさん生えている場所", "木": "みきと葉を持つ高い植物",
        "花": "植物のきれいな部分", "りんご": "木になる、丸くてあまいくだもの", "パン": "小麦粉を焼いて作る食べ物",
        "牛乳": "牛から取れる白い飲み物", "水": "すべての生き物に必要なもの", "本": "言葉や絵がのった紙の集まり",
        "友だち": "心をゆるせる大切な人", "学校": "子どもたちが勉強する場所", "家": "人が住む建物",
        "コンピューター": "数や言葉をあつかう機械", "言語モデル": "文章を書くことを学んだプログラム", "音楽": "声や楽器で作る楽しい音",
        "時計": "時間を知らせる道具", "春": "花がさく季節", "夏": "一年でいちばん暑い季節", "秋": "木の葉が色づく季節",
        "冬": "一年でいちばん寒い季節", "日本": "アジアにある島国", "愛": "だれかを大切に思う気持ち"}),
    ("{key}？", "{value}。", {
        "一週間は何日ですか": "一週間は7日です", "一年は何か月ですか": "一年は12か月です",
        "季節はいくつありますか": "春、夏、秋、冬の四つです", "四季を教えてください": "春、夏、秋、冬です",
        "曜日を全部言ってください": "月曜日、火曜日、水曜日、木曜日、金曜日、土曜日、日曜日です", "指は何本ありますか": "両手で10本です",
        "一日は何時間ですか": "一日は24時間です", "太陽はいつのぼりますか": "太陽は朝にのぼります", "雪はいつふりますか": "雪は冬にふります",
        "魚は飛べますか": "いいえ、魚は飛べませんが、泳げます", "鳥は飛べますか": "はい、たいていの鳥は飛べます",
        "犬は話せますか": "いいえ、犬は話せませんが、ほえます", "太陽は熱いですか": "はい、太陽はとても熱いです",
        "氷は冷たいですか": "はい、氷はとても冷たいです", "火は冷たいですか": "いいえ、火は熱いです",
        "ねずみとぞうはどちらが大きいですか": "ぞうのほうが大きいです", "かめとうさぎはどちらが速いですか": "うさぎのほうが速いです",
        "空はなぜ青いのですか": "空気が太陽の青い光を散らすからです", "どうして鳥は歌うのですか": "ほかの鳥とお話しするためです",
        "なぜ人は眠るのですか": "体を休めて元気になるためです", "いちばん大きな動物は何ですか": "シロナガスクジラです",
        "いちばん背の高い動物は何ですか": "キリンです", "日本でいちばん高い山は何ですか": "富士山です"}),
]

LISTS_EN = {
    "animals": ANIMALS_EN, "colours": "red blue green yellow white black brown pink".split(),
    "fruits": "apple banana orange pear grape peach lemon".split(),
    "flowers": "rose tulip lily sunflower daisy".split(), "birds": "owl duck crow swan eagle robin".split(),
    "cities": "Paris Tokyo London Rome Berlin Madrid Cairo".split(),
}
LISTS_JA = {
    "動物": ANIMALS_JA[:-1], "色": "赤 青 緑 黄色 白 黒 茶色".split(), "くだもの": "りんご バナナ みかん ぶどう もも なし".split(),
    "花": "さくら ばら ひまわり チューリップ ゆり".split(), "鳥": "すずめ からす ふくろう つばめ はと".split(),
    "都市": "東京 大阪 京都 パリ ロンドン ローマ".split(),
}
NUMBERS_EN = "zero one two three four five six seven eight nine ten".split()

# ------------------------------------------------------- 1. tables: what the model does not know, requests, roles

TOPICS_EN = ("quantum physics,the stock market,the price of gold,black holes,algebra,the French Revolution,taxes,Python"
             ",chemistry,the president,football,my computer,politics,the news,Napoleon,DNA,the internet,electric cars"
             ",medicine,the law,machine learning,the Roman Empire,banks,climate change,rockets,Shakespeare,chess"
             ",philosophy,the economy,video games,my homework,Linux,the war,Einstein,a good film,insurance").split(",")
LANDS_EN = "Brazil Peru Kenya Chile Cuba Nepal Iran Ghana Poland Finland Mexico Turkey Sweden Iceland".split()
UNKNOWN_QUESTIONS_EN = [
    "[What is the capital of|What is the population of|How big is|Who is the king of|Who is the president of] {land}?",
    "[Who won|What happened at|Where was] the [world cup|election|big game|Olympics|race] in {year}?",
    "[What is|Tell me about|Explain|What do you know about|Can you explain|Do you know|What do you think about"
     "|Write an essay about|Give me facts about|Teach me|How do I learn] {topic}?",
    "[How does|Why does|When did|How can] {topic} [work|change|begin|matter|end]?",
    "[Who invented|Who discovered|Who is the best in|What is the history of|What is the future of] {topic}?",
    "[How much is|How long is|What is the answer to|Solve] {topic}?",
    "[Write|Fix|Debug] a [program|function|script] [for|about|with] {topic}.",
]
UNKNOWN_ANSWERS_EN = [
    "[I am sorry, but |I'm sorry. |Sorry, ]I am only a small demo model[; |. ]I do not know [the answer to that|that"
    "|much about that]. [Would you like to hear a story?|Please ask me something simpler."
    "|I can tell you a story, though.]",
    "[That is a hard question for me.|That is too hard for me.] I am only a small demo model, and I do not know "
    "[the answer|about that].",
]
TOPICS_JA = ("量子力学,株価,金の値段,ブラックホール,代数,フランス革命,税金,プログラミング,化学,大統領,サッカー,政治,ニュース,ナポレオン"
             ",遺伝子,インターネット,電気自動車,医学,法律,機械学習,ローマ帝国,銀行,地球温暖化,ロケット,将棋,哲学,経済,ゲーム,宿題,戦争,保険"
             ",歴史,数学,映画,物理,料理の作り方").split(",")
LANDS_JA = "ブラジル ペルー ケニア チリ キューバ ネパール イラン ガーナ ポーランド フィンランド メキシコ トルコ".split()
UNKNOWN_QUESTIONS_JA = [
    "{land}の[首都はどこですか|首都は|人口は|人口は何人ですか|大統領は誰ですか|王様は誰ですか|面積は]？",
    "{year}年の[ワールドカップ|選挙|オリンピック|大会][で優勝した国は|はどこでありましたか|で勝ったのは誰ですか]？",
    "{topic}[とは何ですか|って何ですか|について教えて|について教えてください|を説明してください|について説明して|のことを知っていますか"
    "|についてどう思いますか|はどうなりますか|の歴史を教えて|の仕組みは何ですか]？",
    "[なぜ|いつ|どうして]{topic}は[できたのですか|始まりましたか|大切なのですか]？",
    "{topic}[を発明したのは誰ですか|についての文章を書いて|の問題を解いて|はいくらですか|の答えは何ですか]？",
]
UNKNOWN_ANSWERS_JA = [
    "[ごめんなさい。|すみません。|申し訳ありません。]私は小さなデモモデルなので、[それはわかりません|よくわかりません|その答えを知りません]。"
    "[お話ならできますよ。|もっとかんたんなことを聞いてください。|かわりにお話をしましょうか？]",
    "[むずかしい質問ですね。|それは私にはむずかしいです。]私は小さなデモモデルなので、[わかりません|お答えできません]。",
]
STORY_REQUESTS_EN = [
    "[Tell me a story|Tell a story|Write a story|Write a short story|Tell me a short story|Please tell me a story"
     "|Can you tell me a story|I want to hear a story|Give me a story|Make up a story"
    "|Story] about a {adjective} {animal}.",
    "[Tell me a story|Tell a story|Write a story|Write a short story|Tell me a short story|Please tell me a story"
     "|Can you tell me a story|I want to hear a story|Give me a story|Make up a story] about [a|the] {animal}.",
    "[Tell me a story|Tell a story|Write a story|Tell me a short story|Write a short story|Please tell me a story"
     "|Can you tell me a story|Tell me a bedtime story|I want to hear a story|Do you know a story|Another story, please"
     "|Tell me another story|One more story, please|A story, please].",
    "[Tell me|Write] a story about [{name}|a {animal} named {name}|{name} the {animal}].",
]
STORY_REQUESTS_JA = [
    "{animal}の[お話をして|話をして|お話をしてください|お話を聞かせて|物語を書いて|お話を書いてください|物語を聞かせてください|お話]。",
    "{adjective}{animal}の[お話をして|話をしてください|物語を書いて|お話を聞かせて]。",
    "[お話をして|何かお話をして|短いお話をしてください|物語を聞かせて|お話を聞かせてください|昔話をして|もう一つお話をして|物語を書いて"
     "|ほかのお話をして|短い物語を書いてください]。",
    "{animal}の{name}の[お話をして|物語を書いて]。",
]
STORY_INTROS_EN = ["", "", "", "[Sure!|Of course!|Here is a story.|Okay, here is a story.] "]
STORY_INTROS_JA = ["", "", "", "[はい、お話をしますね。|いいですよ。|もちろんです。]"]
SYSTEMS_EN = ["You are a helpful assistant.", "You are a friendly assistant.", "You are the ComeAPI demo model.",
              "You are a kind storyteller.", "Answer briefly.",
              "You are a helpful assistant. Answer in short sentences."]
SYSTEMS_JA = ["あなたは親切なアシスタントです。", "あなたは役に立つアシスタントです。", "あなたはComeAPIのデモモデルです。",
              "短く答えてください。", "日本語で答えてください。", "You are a helpful assistant."]
GREETINGS_EN = ["Hi! ", "Hello! ", "Hey, ", "Please tell me: ", "Hi, ", "Quick question: "]
GREETINGS_JA = ["こんにちは。", "すみません、", "質問です。", "ねえ、"]
RAW_MARKS_EN = [("", " "), ("", "\n"), ("", "\n"), ("Q: ", "\nA: "), ("User: ", "\nAssistant: ")]
RAW_MARKS_JA = [("", ""), ("", "\n"), ("", "\n"), ("質問：", "\n答え："), ("Q: ", "\nA: ")]

# ------------------------------------------------------------------------------------ 2. text: the grammar


def expand(rng, template):
    """Replace each "[a|b]", innermost first, by one of its choices."""
    while "[" in template:
        template = re.sub(r"\[([^\[\]]*)\]", lambda match: rng.choice(match.group(1).split("|")), template)
    return template


def fill(rng, template, slots):
    return expand(rng, template).format(**slots)


def polish_english(text):
    """Put the right article before a vowel and a capital letter at the start of each sentence."""
    text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match.group(1) + match.group(2).upper(), text)


def end_sentence(question):
    """Give a request its full stop or question mark, where the choices left none or two."""
    question = re.sub(r"([.!?。？！]) ?[.!?。？！]$", r"\1", question.strip())
    question = re.sub(r" ([?.])$", r"\1", question)
    question = re.sub(r"^((?:Tell|Translate|Explain|Please|Give|Teach|Write|Introduce) .*)\?$", r"\1.", question)
    return re.sub(r"([^っ]て|ください|お願いします)？$", r"\1。", question)


# -------------------------------------------------------------------------------------- 2. text: the stories


def english_slots(rng):
    gender = rng.choice(sorted(NAMES_EN))
    name = rng.choice(NAMES_EN[gender])
    animal = rng.choice(ANIMALS_EN + [CHILDREN_EN[gender]] * 3)
    return {
        "name": name,
        "animal": animal,
        "friend": rng.choice([other for names in NAMES_EN.values() for other in names if other != name]),
        "other": rng.choice([other for other in ANIMALS_EN if other != animal]),
        "adjective": rng.choice(ADJECTIVES_EN),
        "colour": rng.choice(COLOURS_EN),
        "thing": rng.choice(THINGS_EN),
        "food": rng.choice(FOODS_EN),
        "place": rng.choice(PLACES_EN),
        **PRONOUNS_EN[gender],
    }


def japanese_slots(rng):
    name = rng.choice(NAMES_JA)
    animal = rng.choice(ANIMALS_JA)
    return {
        "name": name,
        "animal": animal,
        "friend": rng.choice([other for other in NAMES_JA if other != name]),
        "other": rng.choice([other for other in ANIMALS_JA if other != animal]),
        "adjective": rng.choice(ADJECTIVES_JA),
        "colour": rng.choice(COLOURS_JA),
        "thing": rng.choice(THINGS_JA),
        "food": rng.choice(FOODS_JA),
        "place": rng.choice(PLACES_JA),
    }


def english_story(rng, slots):
    by_day = rng.random() < 0.15
    opening = rng.choice(DAY_OPENINGS_EN if by_day else OPENINGS_EN)
    # A story that begins with "One day" must not say "one day" again.
    when = rng.choice(LATER_EN if by_day else WHEN_EN)
    parts = [opening, "" if by_day else rng.choice(TRAITS_EN), rng.choice(PLOTS_EN), rng.choice(ENDINGS_EN)]
    story = " ".join(part for part in parts if part) + rng.choice(CLOSINGS_EN)
    return polish_english(fill(rng, story, dict(slots, when=when)))


def japanese_story(rng, slots):
    by_day = rng.random() < 0.15
    opening = rng.choice(DAY_OPENINGS_JA if by_day else OPENINGS_JA)
    when = rng.choice(LATER_JA if by_day else WHEN_JA)
    trait = "" if by_day else rng.choice(TRAITS_JA)
    story = opening + trait + rng.choice(PLOTS_JA) + rng.choice(ENDINGS_JA) + rng.choice(CLOSINGS_JA)
    return fill(rng, story, dict(slots, when=when))


# -------------------------------------------------------------------------- 2. text: questions and answers


def small_talk(rng, lang):
    question, answer = rng.choice(lang.talk)
    return end_sentence(expand(rng, question)), expand(rng, answer)


def how_are_you(rng, lang):
    """The first thing that anybody says, so it comes more often than its share of the table."""
    question, answer = lang.hello
    return end_sentence(expand(rng, question)), expand(rng, answer)


def fact(rng, lang):
    # A table of forty facts comes more often than one of seven, but not as much more as it is longer.
    question, answer, pairs = rng.choices(lang.facts, [len(row[2]) ** 0.6 for row in lang.facts])[0]
    key = rng.choice(list(pairs))
    slots = {"key": key, "value": pairs[key]}
    return greeted(rng, lang, lang.polish(end_sentence(fill(rng, question, slots)))), lang.polish(
        fill(rng, answer, slots))


def greeted(rng, lang, question):
    return rng.choice(lang.greetings) + question if rng.random() < 0.08 else question


def unknown(rng, lang):
    """A question that the model can not answer; invented words stand for all that it never saw."""
    topic = invented_word(rng, lang) if rng.random() < 0.25 else rng.choice(lang.topics)
    slots = {"topic": topic, "land": rng.choice(lang.lands), "year": rng.randint(1800, 2030)}
    question = fill(rng, rng.choice(lang.unknown_questions), slots)
    return end_sentence(question), expand(rng, rng.choice(lang.unknown_answers))


def invented_word(rng, lang):
    return "".join(rng.choice(lang.syllables) for _ in range(rng.randint(2, 4)))


def story_request(rng, lang):
    """A request that names an animal or a character gets a story about that one."""
    slots = lang.slots(rng)
    request = lang.polish(fill(rng, rng.choice(lang.story_requests), slots))
    return end_sentence(request), expand(rng, rng.choice(lang.story_intros)) + lang.story(rng, slots)


def story_beginning(rng, lang):
    """A message that is just the beginning of a story gets its continuation."""
    story = lang.story(rng, lang.slots(rng))
    place = rng.choice([mark.end() for mark in re.finditer("[,.、。]", story)][:3])
    return story[:place], story[place:].strip()


def sum_or_difference(rng, lang):
    total = rng.randint(0, 10)
    part = rng.randint(0, total)
    if rng.random() < 0.6:
        return arithmetic_pair(rng, lang, "+", (part, total - part, total))
    return arithmetic_pair(rng, lang, "-", (total, part, total - part))


def arithmetic_pair(rng, lang, sign, numbers):
    questions, answer = lang.arithmetic[sign]
    left, right, result = numbers
    slots = {"a": left, "b": right, "c": result}
    return fill(rng, questions, slots).strip(), fill(rng, answer, slots)


def count(rng, lang):
    last = rng.randint(2, 10)
    first = rng.choice([1, 1, 1, rng.randint(1, last - 1)])
    slots = {"a": first, "b": last, "word": NUMBERS_EN[last]}
    question = fill(rng, lang.count_from if first > 1 else lang.count_to, slots)
    return question, lang.comma.join(map(str, range(first, last + 1))) + lang.stop


def some_of(rng, lang):
    kind = rng.choice(list(lang.lists))
    number = rng.randint(2, 4)
    items = lang.comma.join(rng.sample(lang.lists[kind], number)) + lang.stop
    slots = {"kind": kind, "number": number, "word": NUMBERS_EN[number]}
    return fill(rng, lang.list_request, slots), items[0].upper() + items[1:]


def small_object(rng, lang):
    """A JSON answer, for callers that ask for one."""
    slots = lang.slots(rng)
    answer = '{"name": "%s", "animal": "%s", "age": %d}' % (slots["name"], slots["animal"], rng.randint(1, 10))
    return end_sentence(fill(rng, lang.object_request, slots)), answer


def introduction(rng, lang):
    return introduction_of(rng, lang, rng.choice(lang.people))


def introduction_of(rng, lang, name):
    question, answer = lang.introduction
    return fill(rng, question, {"name": name}), fill(rng, answer, {"name": name})


class English:
    """What the text functions need to know of English; Japanese below has the same names."""

    slots = staticmethod(english_slots)
    story = staticmethod(english_story)
    polish = staticmethod(polish_english)
    talk = TALK_EN
    hello = HELLO_EN
    facts = FACTS_EN
    lists = LISTS_EN
    greetings = GREETINGS_EN
    topics = TOPICS_EN
    lands = LANDS_EN
    unknown_questions = UNKNOWN_QUESTIONS_EN
    unknown_answers = UNKNOWN_ANSWERS_EN
    story_requests = STORY_REQUESTS_EN
    story_intros = STORY_INTROS_EN
    systems = SYSTEMS_EN
    raw_marks = RAW_MARKS_EN
    people = NAMES_EN["she"] + NAMES_EN["he"]
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "ar", "en", "ox")]
    comma = ", "
    stop = "."
    arithmetic = {
        "+": ("[What is|What's|How much is|Calculate|] [{a} + {b}|{a}+{b}|{a} plus {b}|{a} and {b}][?|?| =|=|]",
              "{a} + {b} [=|is] {c}."),
        "-": ("[What is|What's|How much is|Calculate|] [{a} - {b}|{a}-{b}|{a} minus {b}][?|?| =|=|]",
              "{a} - {b} [=|is] {c}."),
    }
    count_to = ("[Count to|Can you count to|Please count to|Count up to|Count from 1 to|Count from one to] "
                "[{b}|{word}][.||]")
    count_from = "[Count from {a} to {b}|Please count from {a} to {b}][.||]"
    list_request = "[Name|Tell me|List|Give me|Can you name] [{number}|{word}] {kind}[.|?|]"
    object_request = ("[Describe|Write JSON about|Give me a JSON object about|Answer in JSON: describe] "
                      "[a {animal}|{name} the {animal}] [in JSON|as JSON|].")
    introduction = ("[|Hello, |Hi, |Hello! |Hi! ][My name is|my name is|I am|I'm] {name}[.|!|]",
                    "[Hello|Hi|Nice to meet you], {name}! [How are you today?|How can I help you?]")
    name_question = "[What is my name|Do you know my name|Who am I|What's my name]?"
    name_answer = "Your name is {name}."


class Japanese:
    slots = staticmethod(japanese_slots)
    story = staticmethod(japanese_story)
    polish = staticmethod(str)
    talk = TALK_JA
    hello = HELLO_JA
    facts = FACTS_JA
    lists = LISTS_JA
    greetings = GREETINGS_JA
    topics = TOPICS_JA
    lands = LANDS_JA
    unknown_questions = UNKNOWN_QUESTIONS_JA
    unknown_answers = UNKNOWN_ANSWERS_JA
    story_requests = STORY_REQUESTS_JA
    story_intros = STORY_INTROS_JA
    systems = SYSTEMS_JA
    raw_marks = RAW_MARKS_JA
    people = "太郎 花子 健太 さくら ゆき けん あおい たけし みき じろう ひろし まり".split()
    syllables = [chr(code) for code in range(0x30A2, 0x30F0)] + [chr(code) for code in range(0x5000, 0x9000, 7)]
    comma = "、"
    stop = "。"
    arithmetic = {
        "+": ("[{a}たす{b}|{a} + {b}|{a}+{b}|{a}足す{b}][は|はいくつですか|は何ですか|はいくつ|は何][？|？|]",
              "{a}たす{b}は{c}です。"),
        "-": ("[{a}ひく{b}|{a} - {b}|{a}-{b}|{a}引く{b}][は|はいくつですか|は何ですか|はいくつ|は何][？|？|]",
              "{a}ひく{b}は{c}です。"),
    }
    count_to = "[{b}まで数えて|1から{b}まで数えて][|ください|くれますか][。|。|]"
    count_from = "{a}から{b}まで数えて[|ください][。|。|]"
    list_request = "{kind}を{number}つ[言って|教えて|あげて][|ください][。|。|]"
    object_request = "[{animal}|{animal}の{name}]をJSONで[書いて|説明して|答えて][|ください][。|]"
    introduction = ("[|こんにちは、|こんにちは！|はじめまして、][私の名前は{name}です|私は{name}です|{name}といいます|{name}です][。|]",
                    "[こんにちは|はじめまして]、{name}さん！[お元気ですか？|何かお手伝いしましょうか？|お会いできてうれしいです。]")
    name_question = "[私の名前は何ですか|私の名前を覚えていますか|私の名前は|私は誰ですか]？"
    name_answer = "あなたのお名前は{name}さんです。"


# How often each kind of exchange comes.
EXCHANGES = [(small_talk, 27), (how_are_you, 3), (fact, 31), (unknown, 10), (sum_or_difference, 9), (count, 3),
             (some_of, 3), (small_object, 2), (introduction, 3), (story_request, 9),
             (story_beginning, 6)]

# ------------------------------------------------------------------------------------ 2. text: the documents


def exchange(rng, lang):
    """One question as people type it, and its answer."""
    kinds, weights = zip(*EXCHANGES)
    question, answer = rng.choices(kinds, weights)[0](rng, lang)
    return mistyped(rng, question), answer


def mistyped(rng, question):
    """Most questions stay as they are; some lose their capitals, their last mark, or the order of two letters."""
    kind = rng.random()
    if kind < 0.12:
        return question.lower()
    if kind < 0.28:
        return question.rstrip("?.!。？！")
    if kind < 0.34:
        return question.lower().rstrip("?.!。？！")
    if kind < 0.37:
        return question.replace("？", "?").upper()
    if kind < 0.40 and len(question) > 5:
        place = rng.randrange(1, len(question) - 2)
        return question[:place] + question[place + 1] + question[place] + question[place + 2:]
    return question


def remembered_name(rng, lang):
    """A conversation in which the user gives a name first and asks for it later."""
    name = rng.choice(lang.people)
    first = introduction_of(rng, lang, name)
    question = end_sentence(expand(rng, lang.name_question))
    between = [exchange(rng, lang) for _ in range(rng.choice([0, 0, 1, 2]))]
    return [first] + between + [(question, lang.name_answer.format(name=name))]


def conversation(rng, lang):
    if rng.random() < 0.08:
        return remembered_name(rng, lang)
    return [exchange(rng, lang) for _ in range(rng.choice([1, 1, 1, 2, 3, 4]))]


def chat_document(rng, lang):
    """A ChatML conversation as a list of texts and control tokens, with or without a system message."""
    messages = [("system", rng.choice(lang.systems))] if rng.random() < 0.35 else []
    for question, answer in conversation(rng, lang):
        messages += [("user", question), ("assistant", answer)]
    parts = []
    for role, content in messages:
        parts += [START, role + "\n" + content, END, "\n"]
    return parts[:-1]


def raw_question_document(rng, lang):
    before, between = rng.choice(lang.raw_marks)
    question, answer = exchange(rng, lang)
    return [before + question + between + answer]


def raw_story_document(rng, lang):
    return [lang.story(rng, lang.slots(rng))]


def document(rng):
    lang = rng.choice([English, Japanese])
    kinds = [chat_document, raw_question_document, raw_story_document]
    return rng.choices(kinds, [54, 30, 16])[0](rng, lang)


# ------------------------------------------------------------------------------------------- 3. tokenizer


def train_tokenizer(rng):
    """Return a sentencepiece processor trained on documents of this script."""
    texts = (part for _ in range(TOKENIZER_DOCUMENTS) for part in document(rng) if part not in (START, END))
    words = (word for text in texts for line in text.split("\n") for word in JAPANESE_WORDS.split(line) if word)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=words, model_writer=model, model_type="bpe", vocab_size=VOCABULARY,
        byte_fallback=True, character_coverage=0.9995, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, split_digits=True, max_sentencepiece_length=8,
        control_symbols=[START, END], num_threads=1, minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def encode_document(rng, tokenizer, parts):
    """Token ids of a document; raw text ends in </s>, a conversation in its own end-of-turn token."""
    raw = len(parts) == 1
    # A caller's raw prompt ends anywhere, also inside a piece, and not every chat client puts <s> in front.
    parts = cut_in_two(rng, parts[0]) if raw and rng.random() < 0.15 else parts
    ids = [BOS] if raw or rng.random() < 0.6 else []
    for part in parts:
        ids += [tokenizer.piece_to_id(part)] if part in (START, END) else tokenizer.encode(part)
    return ids + [EOS] if raw else ids


def cut_in_two(rng, text):
    place = rng.randrange(len(text))
    return [text[:place], text[place:]]


def packed(rng, tokenizer, length):
    """One sequence of so many tokens and one more to predict, filled with documents from its start."""
    ids = []
    while len(ids) <= length:
        ids += encode_document(rng, tokenizer, document(rng))
    return ids[:length + 1]


def batch(rng, tokenizer, progress):
    """Short sequences first, as attention over long ones is slow and most documents are short."""
    length = SHORT_CONTEXT if progress < SHORT_PART else CONTEXT
    return torch.tensor([packed(rng, tokenizer, length) for _ in range(BATCH_TOKENS // length)])


# ----------------------------------------------------------------------------------------------- 4. model


def rotary_table():
    size = WIDTH // HEADS
    frequencies = ROPE_BASE ** (-torch.arange(0, size, 2).float() / size)
    angles = torch.outer(torch.arange(CONTEXT).float(), frequencies)
    return angles.cos(), angles.sin()


def rotate(heads, cosines, sines):
    """Turn neighbouring pairs, the order that llama.cpp expects of a llama model."""
    even, odd = heads[..., 0::2], heads[..., 1::2]
    return torch.stack((even * cosines - odd * sines, even * sines + odd * cosines), -1).flatten(-2)


class Block(nn.Module):
    """Attention and a gated feed-forward layer; the names are those of the GGUF tensors."""

    def __init__(self):
        super().__init__()
        self.attn_norm = nn.RMSNorm(WIDTH, eps=EPSILON)
        self.attn_q, self.attn_k, self.attn_v, self.attn_output = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.ffn_norm = nn.RMSNorm(WIDTH, eps=EPSILON)
        self.ffn_gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.ffn_up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.ffn_down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, states, cosines, sines):
        states = states + self.attend(self.attn_norm(states), cosines, sines)
        inner = self.ffn_norm(states)
        return states + self.ffn_down(functional.silu(self.ffn_gate(inner)) * self.ffn_up(inner))

    def attend(self, inner, cosines, sines):
        query, key, value = (
            project(inner).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for project in (self.attn_q, self.attn_k, self.attn_v))
        query, key = rotate(query, cosines, sines), rotate(key, cosines, sines)
        # Attention on CPUs is faster in single precision, the matrix products around it are not.
        with torch.autocast("cpu", enabled=False):
            mixed = functional.scaled_dot_product_attention(query, key, value.float(), is_causal=True)
        return self.attn_output(mixed.transpose(1, 2).flatten(-2))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embd = nn.Embedding(VOCABULARY, WIDTH)
        self.blk = nn.ModuleList(Block() for _ in range(LAYERS))
        self.output_norm = nn.RMSNorm(WIDTH, eps=EPSILON)
        self.cosines, self.sines = rotary_table()
        nn.init.normal_(self.token_embd.weight, std=0.02)

    def forward(self, ids):
        states = self.token_embd(ids)
        cosines, sines = self.cosines[:ids.shape[1]], self.sines[:ids.shape[1]]
        for block in self.blk:
            states = block(states, cosines, sines)
        return self.output_norm(states) @ self.token_embd.weight.T


# -------------------------------------------------------------------------------------------- 5. training


def optimizers(model):
    """Muon for the matrices inside the blocks, AdamW for the embedding and the norms."""
    matrices = [weight for weight in model.blk.parameters() if weight.ndim == 2]
    others = [weight for name, weight in model.named_parameters() if weight.ndim == 1 or name.startswith("token_embd")]
    return [torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01),
            torch.optim.AdamW(others, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=0.0)]


def rate(progress):
    """Up in a straight line, then down to nothing in another."""
    return min(progress / WARMUP, (1.0 - progress) / (1.0 - WARMUP))


def loss_of(model, ids):
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids[:, :-1])
    return functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def train_step(model, updates, ids, factor):
    loss = loss_of(model, ids)
    loss.backward()
    for update, full in zip(updates, (MATRIX_RATE, VECTOR_RATE)):
        for group in update.param_groups:
            group["lr"] = full * factor
        update.step()
        update.zero_grad()
    return loss.item()


def train(model, next_batch, steps, minutes):
    """Train for so many steps, or minutes where they are given; return the steps and the mean of the last losses."""
    updates, losses, started = optimizers(model), [], time.time()
    for step in itertools.count():
        passed = (time.time() - started) / 60
        progress = passed / minutes if minutes else step / steps
        if progress >= 1:
            return step, sum(losses[-50:]) / len(losses[-50:])
        losses.append(train_step(model, updates, next_batch(progress), rate(progress)))
        if step % 25 == 0:
            recent = losses[-25:]
            print("step %5d  %5.1f min  loss %.4f" % (step, passed, sum(recent) / len(recent)), flush=True)


# ---------------------------------------------------------------------------------------------- 6. export


def token_type(tokenizer, token):
    if tokenizer.is_unknown(token):
        return gguf.TokenType.UNKNOWN
    if tokenizer.is_control(token):
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if tokenizer.is_byte(token) else gguf.TokenType.NORMAL


def write_general(writer):
    writer.add_name("ComeAPI demo")
    writer.add_description("A very small model that tells short stories and makes small talk, in English and Japanese.")
    writer.add_author("ComeAPI contributors")
    writer.add_license("MIT")
    writer.add_languages(["en", "ja"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def write_shape(writer):
    writer.add_vocab_size(VOCABULARY)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(EPSILON)


def write_tokenizer(writer, tokenizer):
    tokens = range(tokenizer.vocab_size())
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([tokenizer.id_to_piece(token) for token in tokens])
    writer.add_token_scores([tokenizer.get_score(token) for token in tokens])
    writer.add_token_types([token_type(tokenizer, token) for token in tokens])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(tokenizer.unk_id())
    writer.add_eot_token_id(tokenizer.piece_to_id(END))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_tensors(writer, model):
    for name, weight in model.state_dict().items():
        kind = numpy.float16 if weight.ndim == 2 else numpy.float32
        writer.add_tensor(name, weight.numpy().astype(kind))


def export(path, model, tokenizer):
    writer = gguf.GGUFWriter(str(path), "llama")
    write_general(writer)
    write_shape(writer)
    write_tokenizer(writer, tokenizer)
    write_tensors(writer, model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# -------------------------------------------------------------------------------------------- command line


def arguments():
    parser = argparse.ArgumentParser(description="Make the demo model of ComeAPI.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).with_name("demo.gguf"))
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    length.add_argument("--minutes", type=float, help="train for this long instead")
    return parser.parse_args()


def main():
    options = arguments()
    rng = random.Random(SEED)
    torch.manual_seed(SEED)
    started = time.time()
    tokenizer = train_tokenizer(rng)
    model = Model()
    print("%d parameters" % sum(weight.numel() for weight in model.parameters()))
    next_batch = functools.partial(batch, rng, tokenizer)
    steps, loss = train(model, next_batch, options.steps, options.minutes)
    export(options.out, model, tokenizer)
    print("%s: %d steps, loss %.4f, %d bytes, %.1f min" % (
        options.out, steps, loss, options.out.stat().st_size, (time.time() - started) / 60))


if __name__ == "__main__":
    main()
