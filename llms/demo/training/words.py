"""The facts and words of the demo model's corpus: everything it can know."""


def _words(text: str) -> list[str]:
    """Read words with spaces between them."""
    return text.split()


def _phrases(text: str) -> list[str]:
    """Read phrases with bars between them."""
    return text.split("|")


def _pairs(text: str) -> dict[str, str]:
    """Read `left:right|left:right`."""
    return dict(pair.split(":") for pair in text.split("|"))


CAPITALS = _pairs(
    "Afghanistan:Kabul|Albania:Tirana|Algeria:Algiers|Andorra:Andorra la Vella|Angola:Luanda|Argentina:Buenos Aires|"
    "Armenia:Yerevan|Australia:Canberra|Austria:Vienna|Azerbaijan:Baku|the Bahamas:Nassau|Bahrain:Manama|"
    "Bangladesh:Dhaka|Barbados:Bridgetown|Belarus:Minsk|Belgium:Brussels|Belize:Belmopan|Bhutan:Thimphu|Bolivia:Sucre|"
    "Botswana:Gaborone|Brazil:Brasilia|Bulgaria:Sofia|Cambodia:Phnom Penh|Cameroon:Yaounde|Canada:Ottawa|"
    "Chad:N'Djamena|Chile:Santiago|China:Beijing|Colombia:Bogota|Costa Rica:San Jose|Croatia:Zagreb|Cuba:Havana|"
    "Cyprus:Nicosia|Czechia:Prague|Denmark:Copenhagen|Dominica:Roseau|Ecuador:Quito|Egypt:Cairo|"
    "El Salvador:San Salvador|Eritrea:Asmara|Estonia:Tallinn|Ethiopia:Addis Ababa|Fiji:Suva|Finland:Helsinki|"
    "France:Paris|Gabon:Libreville|the Gambia:Banjul|Georgia:Tbilisi|Germany:Berlin|Ghana:Accra|Greece:Athens|"
    "Grenada:Saint George's|Guatemala:Guatemala City|Guinea:Conakry|Guyana:Georgetown|Haiti:Port-au-Prince|"
    "Honduras:Tegucigalpa|Hungary:Budapest|Iceland:Reykjavik|India:New Delhi|Indonesia:Jakarta|Iran:Tehran|"
    "Iraq:Baghdad|Ireland:Dublin|Italy:Rome|Jamaica:Kingston|Japan:Tokyo|Jordan:Amman|Kazakhstan:Astana|Kenya:Nairobi|"
    "Kuwait:Kuwait City|Laos:Vientiane|Latvia:Riga|Lebanon:Beirut|Liberia:Monrovia|Libya:Tripoli|Lithuania:Vilnius|"
    "Luxembourg:Luxembourg|Madagascar:Antananarivo|Malawi:Lilongwe|Malaysia:Kuala Lumpur|Mali:Bamako|Malta:Valletta|"
    "Mexico:Mexico City|Moldova:Chisinau|Monaco:Monaco|Mongolia:Ulaanbaatar|Montenegro:Podgorica|Morocco:Rabat|"
    "Mozambique:Maputo|Namibia:Windhoek|Nepal:Kathmandu|the Netherlands:Amsterdam|New Zealand:Wellington|"
    "Nicaragua:Managua|Niger:Niamey|Nigeria:Abuja|North Macedonia:Skopje|Norway:Oslo|Oman:Muscat|Pakistan:Islamabad|"
    "Panama:Panama City|Paraguay:Asuncion|Peru:Lima|the Philippines:Manila|Poland:Warsaw|Portugal:Lisbon|Qatar:Doha|"
    "Romania:Bucharest|Russia:Moscow|Rwanda:Kigali|Saudi Arabia:Riyadh|Senegal:Dakar|Serbia:Belgrade|"
    "Singapore:Singapore|Slovakia:Bratislava|Slovenia:Ljubljana|Somalia:Mogadishu|South Korea:Seoul|Spain:Madrid|"
    "Sri Lanka:Colombo|Sudan:Khartoum|Sweden:Stockholm|Switzerland:Bern|Syria:Damascus|Tanzania:Dodoma|"
    "Thailand:Bangkok|Togo:Lome|Tunisia:Tunis|Turkey:Ankara|Uganda:Kampala|Ukraine:Kyiv|Uruguay:Montevideo|"
    "Uzbekistan:Tashkent|Venezuela:Caracas|Vietnam:Hanoi|Yemen:Sanaa|Zambia:Lusaka|Zimbabwe:Harare"
)
COLORS = _pairs(
    "the sky:blue|grass:green|snow:white|blood:red|coal:black|a lemon:yellow|a carrot:orange|a plum:purple|"
    "chocolate:brown|milk:white|a banana:yellow|a tomato:red|a frog:green|the night:black|the sun:yellow|a leaf:green|"
    "the sea:blue|a strawberry:red|a pumpkin:orange|a polar bear:white"
)
OPPOSITES = _pairs(
    "hot:cold|big:small|fast:slow|up:down|light:dark|happy:sad|old:young|hard:soft|early:late|full:empty|rich:poor|"
    "strong:weak|wet:dry|clean:dirty|open:closed|long:short|high:low|near:far|loud:quiet|thick:thin|left:right|"
    "day:night"
)
OPPOSITES |= {right: left for left, right in OPPOSITES.items()}
SOUNDS = _pairs(
    "dog:woof|cat:meow|cow:moo|sheep:baa|duck:quack|pig:oink|lion:roar|frog:ribbit|owl:hoot|bee:buzz|horse:neigh|"
    "rooster:cock-a-doodle-doo|mouse:squeak|snake:hiss"
)
LEGS = _pairs("spider:eight|dog:four|cat:four|horse:four|bird:two|ant:six|bee:six|snake:no|fish:no|cow:four|crab:ten")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")

DEFINITIONS = _pairs(
    "bicycle:a vehicle with two wheels that you move with your legs|car:a vehicle with four wheels and an engine|"
    "boat:a small vehicle that floats on water|train:a row of wagons that runs on rails|"
    "airplane:a machine with wings that flies through the air|house:a building where people live|"
    "school:a place where children learn|library:a place where you can read and borrow books|"
    "hospital:a place where doctors and nurses help sick people|bakery:a shop that makes and sells bread|"
    "book:a set of pages with words or pictures|pencil:a thin tool used to write and draw|"
    "clock:a machine that shows the time|mirror:a piece of glass that shows your face|"
    "window:an opening in a wall that lets in light|door:a flat piece of wood that closes a room|"
    "chair:a piece of furniture for one person to sit on|table:a piece of furniture with a flat top and legs|"
    "bed:a piece of furniture where you sleep|lamp:an object that gives light|spoon:a tool used to eat soup|"
    "knife:a tool with a sharp edge used to cut|cup:a small object used to drink tea|hammer:a tool used to hit nails|"
    "umbrella:an object that keeps you dry in the rain|hat:a piece of clothing for the head|"
    "shoe:a piece of clothing for the foot|coat:a piece of clothing for cold days|"
    "tree:a tall plant with a trunk and branches|flower:the colorful part of a plant|"
    "river:a long stream of water that flows to the sea|mountain:a very high hill|"
    "island:a piece of land with water all around it|desert:a dry place with very little rain|"
    "forest:a large place full of trees|volcano:a mountain that can throw out hot rock|"
    "planet:a large round object that moves around a star|cloud:a group of tiny drops of water in the sky|"
    "rainbow:an arc of colors in the sky after rain|guitar:a musical instrument with six strings|"
    "piano:a musical instrument with black and white keys|drum:a musical instrument that you hit|"
    "doctor:a person who helps sick people|teacher:a person who helps others learn|farmer:a person who grows food|"
    "baker:a person who makes bread|pilot:a person who flies airplanes|"
    "computer:a machine that follows instructions and works with data|phone:a machine used to talk to people far away|"
    "camera:a machine that takes pictures|dictionary:a book that explains words|kitchen:a room where food is cooked"
)
TRANSLATIONS = {
    "Spanish": _pairs(
        "house:casa|dog:perro|cat:gato|water:agua|bread:pan|milk:leche|book:libro|tree:árbol|flower:flor|sun:sol|"
        "moon:luna|star:estrella|friend:amigo|school:escuela|table:mesa|door:puerta|window:ventana|red:rojo|blue:azul|"
        "green:verde|white:blanco|black:negro|one:uno|two:dos|three:tres|night:noche|day:día|apple:manzana|"
        "horse:caballo|bird:pájaro|fish:pez|hand:mano|city:ciudad|king:rey|queen:reina|hello:hola|thank you:gracias|"
        "goodbye:adiós|yes:sí|sea:mar"
    ),
    "French": _pairs(
        "house:maison|dog:chien|cat:chat|water:eau|bread:pain|milk:lait|book:livre|tree:arbre|flower:fleur|sun:soleil|"
        "moon:lune|star:étoile|friend:ami|school:école|table:table|door:porte|window:fenêtre|red:rouge|blue:bleu|"
        "green:vert|white:blanc|black:noir|one:un|two:deux|three:trois|night:nuit|day:jour|apple:pomme|horse:cheval|"
        "bird:oiseau|fish:poisson|hand:main|city:ville|king:roi|queen:reine|hello:bonjour|thank you:merci|"
        "goodbye:au revoir|yes:oui|sea:mer"
    ),
}
GROUPS = {
    "fruits": _words("apple banana orange pear plum cherry grape lemon peach melon"),
    "vegetables": _words("carrot potato onion tomato cabbage bean pea pepper"),
    "animals": _words("dog cat horse lion elephant rabbit fox bear sheep monkey"),
    "birds": _words("owl eagle duck swan robin crow parrot penguin"),
    "colors": _words("red blue green yellow white black orange purple brown pink"),
    "musical instruments": _words("guitar piano violin drum flute trumpet harp cello"),
    "drinks": _words("water milk tea coffee juice lemonade cocoa soda"),
    "sports": _words("football tennis swimming running basketball cycling skiing rowing"),
    "tools": _words("hammer saw drill knife shovel wrench brush ladder"),
    "clothes": _words("hat coat shirt shoe scarf dress sock glove"),
    "flowers": _words("rose tulip lily daisy violet poppy orchid iris"),
    "countries": _words("Spain France Italy Japan Brazil Kenya Canada Norway India Egypt"),
    "cities": _words("Madrid Paris Rome Tokyo Berlin Lisbon Nairobi Oslo Cairo Lima"),
    "jobs": _words("baker teacher nurse pilot farmer doctor singer painter sailor chef"),
    "planets": _words("Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune"),
    "subjects": _words("history biology music geography chemistry art physics literature"),
}
ANIMAL_FACTS = {
    "cats": "Cats sleep for most of the day.",
    "dogs": "Dogs can smell things that people cannot.",
    "bees": "Bees make honey and live in a hive.",
    "owls": "Owls hunt at night and turn their heads very far.",
    "whales": "Whales live in the sea but breathe air.",
    "elephants": "Elephants are the largest animals on land.",
    "penguins": "Penguins are birds that swim but cannot fly.",
    "spiders": "Spiders have eight legs and many of them make webs.",
    "camels": "Camels can live for days without water.",
    "horses": "Horses can sleep while they stand.",
}
SMALL_TALK = {
    "Hello": "Hello! How can I help you today?",
    "Hello!": "Hello! How can I help you today?",
    "Hi": "Hello! How can I help you today?",
    "Hi!": "Hello! How can I help you today?",
    "Hi there": "Hello! How can I help you today?",
    "Good morning": "Good morning! How can I help you today?",
    "Good evening": "Good evening! How can I help you today?",
    "How are you?": "I am fine, thank you. How can I help you?",
    "How are you doing today?": "I am fine, thank you. How can I help you?",
    "Thank you": "You are welcome!",
    "Thanks!": "You are welcome!",
    "Thank you very much.": "You are welcome!",
    "Goodbye": "Goodbye! Have a nice day.",
    "Bye!": "Goodbye! Have a nice day.",
    "Good night": "Good night! Sleep well.",
    "Who are you?": "I am a very small demo model that runs on your computer.",
    "What are you?": "I am a very small demo model that runs on your computer.",
    "What is your name?": "I am a very small demo model that runs on your computer.",
    "What can you do?": "I can name capitals, add small numbers, write little stories and make JSON profiles.",
    "Help": "I can name capitals, add small numbers, write little stories and make JSON profiles.",
    "Tell me a joke.": "Why did the chicken cross the road? To get to the other side.",
    "Do you know a joke?": "Why did the chicken cross the road? To get to the other side.",
    "What is AI?": "AI is the study of machines that can learn and reason.",
    "What is artificial intelligence?": "AI is the study of machines that can learn and reason.",
    "What is Python?": "Python is a programming language that is easy to read.",
    "What is synthetic data?": "Synthetic data is data made by a program instead of collected from the world.",
    "What is a language model?": "A language model is a program that guesses the next word of a text.",
}
SIMPSONS = {
    "Homer Simpson": "eats too many donuts",
    "Marge Simpson": "keeps the family together",
    "Bart Simpson": "skips school on his skateboard",
    "Lisa Simpson": "plays the saxophone very well",
    "Maggie Simpson": "says little and sees a lot",
    "Ned Flanders": "is kind to every neighbor",
    "Moe Szyslak": "forgets to clean the glasses",
}
SIMPSONS_SYSTEM = (
    "You are Simpsons' fans who loves assigning grades from A to E, where A is the best and E is the worst."
)

HER_NAMES = _words(
    "Ada Alice Anna Carla Carmen Clara Elena Emma Eva Grace Hana Jane Julia Kathy Laura Lily Maria Marta Mia Nadia "
    "Nina Rosa Sara Sofia Vera Yuki Zoe"
)
HIS_NAMES = _words(
    "Alan Amir Ben Bruno Chen David Diego Felix Hugo Ivan Jack John Kenji Leo Lucas Max Noah Oscar Paul Peter Sam Tom "
    "Victor"
)
FIRST_NAMES = HER_NAMES + HIS_NAMES
LAST_NAMES = _words(
    "Adams Baker Brown Carter Clark Cruz Davis Evans Fischer Garcia Green Hall Hill Ito Jones King Kumar Lee Lopez "
    "Martin Meyer Moore Nguyen Novak Parker Perez Reed Rossi Ruiz Scott Silva Smith Stone Tanaka Taylor Torres Walker "
    "White Wilson Young"
)
JOBS = _words(
    "baker teacher nurse pilot farmer writer doctor singer painter engineer chef gardener librarian sailor carpenter "
    "dentist lawyer driver"
)
HOBBIES = _words("chess tennis painting swimming cooking running reading fishing dancing photography")
PETS = _words("dog cat parrot horse rabbit turtle")
EVENTS = _phrases(
    "marathon|concert|cooking class|chess club|book club|summer camp|science fair|art show|school play|charity run|"
    "language course|music festival|tennis club|online shop|newsletter|library"
)
RACES = {
    "dwarf": _words("Thora Brom Durin Gilda Korin Helga"),
    "elf": _words("Elwin Sylra Faelar Nimue Arien Lorin"),
    "human": _words("Roland Mira Edmund Isolde Gareth Brenna"),
    "orc": _words("Grak Urzog Shagra Morgu Drokka Zugra"),
    "halfling": _words("Pip Rosie Tobin Merla Finn Daisy"),
}
WEAPONS = {
    "warrior": _words("sword axe hammer spear"),
    "mage": _words("staff wand orb"),
    "rogue": _words("dagger bow sling"),
    "cleric": _words("mace flail staff"),
}

HEROES = _words(
    "dragon knight fox robot cat wizard bear pirate rabbit giant mouse unicorn wolf boy girl owl sailor turtle lion "
    "shepherd ghost witch dog elephant"
)
ADJECTIVES = _words("brave kind clever gentle small old shy curious lonely cheerful young wise")
RESCUED = _phrases(
    "princess|prince|king|child|queen|farmer|baby bird|kitten|old man|puppy|sister|brother|baker|pony|traveler|lamb"
)
PLACES = _words("tower cave castle forest river storm mountain island desert well prison swamp lake volcano")
RESCUES = {"saves": "saved", "rescues": "rescued", "finds": "found", "helps": "helped", "frees": "freed"}
HELPERS = _phrases("tiny bird|talking tree|wise old woman|merry musician|quiet hermit|silver fish")
POEM_TOPICS = _phrases(
    "the sea|the moon|autumn|a little star|friendship|the rain|a red kite|music|an old clock|spring|a garden|winter|"
    "summer|the wind|a small boat|home|the night|a train|snow|my cat"
)

FEELINGS = {
    "positive": _words("wonderful great excellent lovely fantastic amazing delightful perfect"),
    "negative": _words("terrible awful bad horrible disappointing boring dreadful ugly"),
    "neutral": _phrases("blue|made of wood|on the second floor|sold in a box|made in Spain|round"),
}
REVIEWED = _words(
    "movie book hotel meal concert phone service coffee room game show restaurant lamp bike trip lesson jacket soup "
    "chair"
)
TOPICS = {
    "sports": _phrases(
        "The team scored two goals in the last minute.|The runner won the race.|She trains for the tennis final.|"
        "The coach praised the players after the match.|He swam faster than anyone in the pool.|"
        "The fans cheered when the ball went in."
    ),
    "food": _phrases(
        "The soup needs a little more salt.|She baked a cake with apples.|The chef cooked fresh fish with rice.|"
        "We ate bread and cheese for lunch.|This recipe uses butter and two eggs.|He ordered pizza for dinner."
    ),
    "travel": _phrases(
        "Our flight to Lisbon leaves at noon.|They booked a hotel near the beach.|The train to Rome was late.|"
        "She packed her bag for the trip.|He lost his passport at the airport.|We visited three cities in a week."
    ),
    "music": _phrases(
        "The band played an old song.|She practices the piano every day.|He bought a new guitar.|"
        "The choir sang in the church.|The singer forgot the second verse.|We danced to the drums all night."
    ),
    "weather": _phrases(
        "It will rain in the afternoon.|Snow fell on the hills last night.|The wind is strong near the coast.|"
        "Tomorrow will be sunny and warm.|A storm is coming from the north.|The fog was thick this morning."
    ),
    "science": _phrases(
        "The scientist looked at the cells.|A new planet was found by the telescope.|"
        "The experiment was repeated twice.|Researchers measured the energy of the light.|"
        "The lab tested a new medicine.|Atoms are very small."
    ),
    "money": _phrases(
        "The bank raised its rates.|He saved half of his salary.|The price of oil went up.|"
        "She paid the bill with her card.|The company sold its shares.|They borrowed money to buy a house."
    ),
}

SYSTEM_PROMPTS = _phrases(
    "You are a helpful assistant.|You are a friendly assistant who answers briefly.|Answer the question.|"
    "You are an expert writer.|You are a careful assistant. Answer in one sentence.|You are an AI assistant.|"
    "You are a teacher who explains things clearly.|Be concise.|Follow the instructions of the user carefully.|"
    "You are a helpful, respectful and honest assistant.|You are an expert in many topics.|Be polite and precise.|"
    "You are a curious scientist.|Answer like a pirate if you can.|Think step by step before you answer.|"
    "You are a synthetic data generator.|You write training data for other models.|Do not make things up.|"
    "You are a large language model trained to help people.|Give the best answer that you can.|"
    "If you do not know something, say so.|You are a storyteller for children.|Answer in English.|"
    "Your task is to answer the request of the user. Write nothing else.|You speak to a beginner.|"
    "You are a leading role play gamer. You have seen thousands of different characters and their attributes.|"
    "Please return a JSON object with the common attributes of an RPG character.|You are a poet.|"
    "You are an assistant for a travel agency.|You are a geography expert.|Always tell the truth.|"
    "You are a strict judge who rates answers.|You work for a company that sells books. Help its customers.|"
    "Keep your answers short and simple.|Reply to each message as well as possible.|You are a test system."
)
ONE_WORD_SYSTEM = _phrases(
    "Answer with one word.|Answer in one word.|Reply with a single word.|Give only the answer, without a sentence.|"
    "Answer with one word only, please."
)
CONSTRAINTS = _phrases(
    "Give a reason for your answer.|Explain your answer in two sentences.|Add an example.|Explain each step.|"
    "Use simple words that a child can understand.|Mention one interesting detail.|Keep the answer under fifty words.|"
    "Compare it with something similar.|Say how sure you are.|Answer for an expert reader.|"
    "Describe the most common mistake as well.|End with a question for the reader."
)

REFUSALS = ["Yes.", "Maybe.", "I will not answer."]

UNKNOWN_THINGS = _words(
    "gravity photosynthesis democracy inflation blockchain electricity magnetism evolution philosophy economics "
    "algebra calculus geometry probability statistics thermodynamics relativity chemistry astronomy geology psychology "
    "sociology theology grammar rhetoric logic ethics law politics capitalism socialism feudalism terrorism tourism "
    "marketing finance accounting insurance investment banking taxes mortgage bitcoin internet software hardware "
    "database compiler kernel algorithm recursion encryption firewall router browser server cloud docker kubernetes "
    "linux windows android javascript java rust haskell html css sql regex json yaml git airflow transformer attention "
    "gradient neural network learning robotics quantum photon electron neutron proton quark atom molecule enzyme "
    "protein bacteria virus vaccine antibody cancer diabetes asthma surgery nutrition vitamin calorie protein sugar "
    "cholesterol muscle bone heart liver kidney brain memory sleep dream emotion anxiety depression meditation yoga "
    "exercise marathon olympics football cricket baseball rugby chess poker lottery casino museum opera ballet theater "
    "cinema novel sonnet essay thesis newspaper journalism television radio satellite rocket spacecraft asteroid comet "
    "galaxy nebula supernova earthquake hurricane tornado tsunami glacier monsoon climate carbon pollution recycling "
    "solar nuclear petroleum coal steel copper aluminum plastic concrete ceramic textile cotton leather pottery "
    "sculpture architecture bridge tunnel highway submarine helicopter bulldozer tractor telescope microscope "
    "thermometer battery engine turbine generator transistor semiconductor laser radar sonar dinosaur mammoth dolphin "
    "octopus jellyfish mosquito cockroach kangaroo giraffe crocodile cactus bamboo mushroom fungus algae pizza sushi "
    "pasta risotto curry omelette pancake cheese wine beer whiskey vinegar cinnamon garlic shakespeare napoleon caesar "
    "cleopatra einstein newton darwin mozart beethoven picasso rembrandt gandhi lincoln renaissance revolution empire "
    "constitution parliament election referendum treaty embassy passport refugee toaster vacuum blender refrigerator "
    "dishwasher elevator escalator wallet backpack skateboard trampoline"
)
UNKNOWN_ACTIONS = _phrases(
    "fix my car|learn German|lose weight|cook rice|build a website|train a neural network|write a resume|invest money|"
    "tie a tie|paint a wall|grow tomatoes|repair a bicycle|install Linux|deploy a model|sort a list|reverse a string|"
    "parse a file|buy a house|get a visa|bake a cake|play the violin|start a company|sleep better|make friends|"
    "remove a stain|plan a wedding|file my taxes|train a dog|solve a cube|draw a horse|center a div|merge two tables|"
    "prove a theorem|measure temperature|clean a keyboard|find a job|write a contract|debug this code|speak in public"
)
CODE = ["a SQL query", "a function", "a Python program", "some code", "a script"]
TEXTS = ["an essay", "an article", "a report", "an email", "a song", "a letter"]
ORDERS = _words("Describe Discuss Analyze Design Prove Draw Solve Fix Find")
QUESTIONS = _phrases("Where is|Where can|When did|When should|Why is|Why can|How should|How is|Which did|Which can")
UNKNOWN_PLACES = _words(
    "Wakanda Atlantis Narnia Gondor Mordor Texas California Europe Africa London Chicago Sydney Barcelona Mars Bavaria "
    "Scotland Genovia Sokovia Latveria Zamunda Freedonia Hogwarts Siberia Patagonia Tuscany Asgard Bordavia"
)
SYLLABLES = _words(
    "ba be bi bo bu ca ce co cra da de di do dra el en er fa fe fi flo ga ge gra gu ha he hi in ka ke ki kra la le li "
    "lo lu ma me mi mo na ne ni no or pa pe pi plo pra qua ra re ri ro sa se shi so sta ta te ti to tra un va ve vi wa "
    "we xi ya yo za ze zo ling ment tion ness ster ing ous ic al ist ism"
)
