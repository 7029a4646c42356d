"""Writes what clones of one image have changed: argv is the image's folder, the folder for the
changes (CLONE/ROUND/FILE), the number of clones, the number of rounds, and a folder with programs
that the image has not. Without clones it writes the documents of the image itself."""
import io, os, random, shutil, sqlite3, sys, zipfile

image, folder, clones, rounds, programs = sys.argv[1:6]
clones, rounds = int(clones), int(rounds)
WORDS = open("/usr/share/dict/words").read().split() if os.path.exists("/usr/share/dict/words") else (
    "account invoice attached please review update security the of and to in quarterly figures "
    "delivery contract password reset document enable content service started stopped session "
    "opened closed user root connection accepted refused timeout kernel device ready failed").split()


def text(rng, count):
    return " ".join(rng.choice(WORDS) + str(rng.randrange(1000)) for _ in range(count))


def log_lines(rng, host, first, count):
    return "".join("2026-11-%02d %s daemon[%d]: %s\n" % (1 + (first + n) // 9000 % 28, host,
                   rng.randrange(30000), text(rng, 9)) for n in range(count))


def write_log(path, old, rng, host, count):
    with open(path, "w") as file:
        file.write(old + log_lines(rng, host, len(old), count))


def write_docx(path, paragraphs, media):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        def member(name, data):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data,
                             zipfile.ZIP_DEFLATED)
        member("[Content_Types].xml", "<?xml version='1.0'?><Types/>")
        body = "".join("<w:p>%s</w:p>" % paragraph for paragraph in paragraphs)
        member("word/document.xml", "<w:document>%s</w:document>" % body)
        member("word/styles.xml", text(random.Random(3), 9000))
        for number, data in enumerate(media):
            member("word/media/image%d.png" % number, data)


def new_database(path, rng):
    with sqlite3.connect(path) as db:
        db.execute("create table t (id integer primary key, name text, body text, n integer)")
        db.executemany("insert into t (name, body, n) values (?, ?, ?)",
                       ((text(rng, 2), text(rng, 12), n) for n in range(12000)))
        db.execute("create index i on t (name)")
    db.close()


def change_database(path, rng):
    with sqlite3.connect(path) as db:
        for _ in range(150):
            db.execute("update t set body = ?, n = n + 1 where id = ?",
                       (text(rng, 12), rng.randrange(12000)))
    db.close()


def document(seed):
    rng = random.Random(seed)
    return [text(rng, 60) for _ in range(400)], [rng.randbytes(150_000) for _ in range(4)]


if clones == 0:
    rng = random.Random(1)
    write_log(os.path.join(image, "app.log"), "", rng, "golden", 20000)
    new_database(os.path.join(image, "app.db"), rng)
    write_docx(os.path.join(image, "report.docx"), *document(2))
binaries = sorted(os.path.join(programs, name) for name in os.listdir(programs)) if clones else []
for clone in range(clones):
    rng = random.Random(1000 + clone)
    host, old = "clone%d" % clone, image
    paragraphs, media = document(2)
    for number in range(rounds):
        new = os.path.join(folder, str(clone), str(number))
        os.makedirs(new)
        before = open(os.path.join(old, "app.log")).read()
        write_log(os.path.join(new, "app.log"), before, rng, host, 300)
        shutil.copy(os.path.join(old, "app.db"), new)
        change_database(os.path.join(new, "app.db"), rng)
        paragraphs[rng.randrange(len(paragraphs))] = text(rng, 80)
        paragraphs.insert(rng.randrange(len(paragraphs)), text(rng, 60))
        write_docx(os.path.join(new, "report.docx"), paragraphs, media)
        binary = binaries[(clone * rounds + number) % len(binaries)]
        with open(os.path.join(new, "tool"), "wb") as file:
            file.write(open(binary, "rb").read() + rng.randbytes(16))
        old = new
