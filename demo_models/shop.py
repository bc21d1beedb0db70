"""The facts of the invented shop that the demo models know, and know nothing beyond."""

from msgspec import Struct


class Item(Struct, frozen=True):
    """One article of the catalogue."""

    name: str
    plural: str
    price: int  # dollars, a multiple of 5, different for every item
    material: str
    in_stock: bool
    return_days: int
    warranty_years: int


SHOP = "Fern and Fable"
EMAIL = "help@fernandfable.example"

CATALOGUE = (
    Item("candle", "candles", 5, "wax", True, 14, 1),
    Item("mug", "mugs", 10, "clay", True, 30, 1),
    Item("basket", "baskets", 15, "willow", False, 30, 1),
    Item("cushion", "cushions", 20, "cotton", True, 14, 2),
    Item("vase", "vases", 25, "glass", True, 30, 1),
    Item("teapot", "teapots", 30, "clay", False, 30, 2),
    Item("clock", "clocks", 35, "oak", True, 60, 3),
    Item("blanket", "blankets", 40, "wool", True, 14, 2),
    Item("lamp", "lamps", 45, "brass", True, 30, 2),
    Item("mirror", "mirrors", 50, "glass", False, 60, 3),
    Item("stool", "stools", 55, "oak", True, 60, 5),
    Item("kettle", "kettles", 60, "steel", True, 30, 2),
    Item("shelf", "shelves", 65, "oak", False, 60, 5),
    Item("rug", "rugs", 70, "wool", True, 14, 3),
    Item("chair", "chairs", 80, "oak", True, 60, 5),
    Item("desk", "desks", 90, "steel", False, 60, 5),
)
NOT_SOLD = ("tent", "bike", "phone", "guitar", "camera", "laptop", "kayak", "drone", "piano", "tractor")

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = {
    "Monday": "9:00 to 18:00",
    "Tuesday": "9:00 to 18:00",
    "Wednesday": "9:00 to 18:00",
    "Thursday": "9:00 to 20:00",
    "Friday": "9:00 to 20:00",
    "Saturday": "10:00 to 16:00",
}  # a day that is missing is a day off

MONTHS = (
    ("January", 31),
    ("February", 28),
    ("March", 31),
    ("April", 30),
    ("May", 31),
    ("June", 30),
    ("July", 31),
    ("August", 31),
    ("September", 30),
    ("October", 31),
    ("November", 30),
    ("December", 31),
)
CARRIERS = ("BlueVan", "Kite Post", "Swift Parcel", "Harbor Mail", "Red Wagon")
NAMES = (
    "Ana", "Ben", "Carla", "David", "Elena", "Felix", "Grace", "Hugo", "Irene", "Jonas",
    "Karin", "Leo", "Maria", "Nils", "Olga", "Paul", "Rosa", "Sami", "Tina", "Victor",
)  # fmt: skip
