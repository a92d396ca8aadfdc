/* A BatchPlan applied in C: the same bits as datasets/cpu.py, for benchmarks/augment.py.
 *
 * Every image first becomes three 8-bit planes of its window, jittered and turned; then each is normalised, erased and
 * mixed into the output. Compile without contraction (-ffp-contract=off): a fused multiply-add rounds once, not twice.
 */
#include <stdint.h>
#include <string.h>

enum { BRIGHTNESS, CONTRAST, SATURATION, HUE };
enum { ONE = 1 << 16, SECTOR = 1 << 20, CIRCLE = 6 * SECTOR };

typedef struct {
    const uint8_t *images; /* [N, H, W, 3] */
    const int32_t *index;  /* and all others of length B, or [B, 4] */
    const int16_t *top, *left;
    const uint8_t *flip;
    const int32_t *jitter;
    const int8_t *order;
    const int32_t *turn;
    const int16_t *erase;
    const int32_t *partner;
    const float *blend;
    const int16_t *box;
    const float *scale, *bias; /* [3] */
    int64_t num, height, width, size;
} Plan;

static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }
static uint8_t clip(int32_t value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }
static int inside(const int16_t *box, int y, int x) { return box[0] <= y && y < box[2] && box[1] <= x && x < box[3]; }
static int32_t grey_of(int r, int g, int b) { return (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16; }

/* Pixels [S * S, 3] as planes [3, S * S]: one loop for all three, or gcc does not vectorise. */
static void split(const uint8_t *restrict pixels, uint8_t *restrict planes, int count) {
    uint8_t *restrict red = planes, *restrict green = planes + count, *restrict blue = planes + 2 * count;
    for (int k = 0; k < count; k++) red[k] = pixels[3 * k], green[k] = pixels[3 * k + 1], blue[k] = pixels[3 * k + 2];
}

/* The same read backwards. In two steps, both of which gcc vectorises; one would take seven times as long. */
static void split_backwards(uint8_t *restrict pixels, uint8_t *restrict planes, int count) {
    split(pixels, planes, count);
    memcpy(pixels, planes, 3 * count);
    for (int c = 0; c < 3; c++)
        for (int k = 0; k < count; k++) planes[c * count + k] = pixels[c * count + count - 1 - k];
}

/* The window of an image as planes [3, S, S], mirrored where told, black outside the image. */
static void cut(const Plan *p, int64_t i, uint8_t *restrict planes, uint8_t *restrict window) {
    const int size = (int)p->size, top = p->top[i], left = p->left[i];
    const int first = min(max(0, -left), size), last = max(first, min(size, (int)p->width - left));
    const uint8_t *image = p->images + p->index[i] * p->height * p->width * 3;
    if (!top && !left && !p->flip[i] && p->height == size && p->width == size) {
        split(image, planes, size * size);
        return;
    }
    if (first > 0 || last < size || top < 0 || top + size > p->height) memset(window, 0, 3 * size * size);
    for (int y = max(0, -top); y < size && top + y < p->height; y++) {
        /* bottom up where it is mirrored: the whole of it read backwards is then the right way up */
        const int row = p->flip[i] ? size - 1 - y : y;
        const uint8_t *from = image + ((top + y) * p->width + left + first) * 3;
        memcpy(window + 3 * (row * size + first), from, 3 * (last - first));
    }
    if (p->flip[i]) split_backwards(window, planes, size * size);
    else split(window, planes, size * size);
}

static void blend_with(uint8_t *planes, int count, int32_t grey, int32_t amount) {
    uint8_t table[256];
    for (int v = 0; v < 256; v++) table[v] = clip((grey * ONE + amount * (v - grey)) >> 16);
    for (int k = 0; k < 3 * count; k++) planes[k] = table[planes[k]];
}

static int32_t mean_grey(const uint8_t *planes, int count) {
    int64_t total = 0;
    for (int k = 0; k < count; k++) total += grey_of(planes[k], planes[count + k], planes[2 * count + k]);
    return (int32_t)((2 * total + count) / (2 * count));
}

static void saturate(uint8_t *planes, int count, int32_t amount) {
    for (int k = 0; k < count; k++) {
        const int32_t grey = grey_of(planes[k], planes[count + k], planes[2 * count + k]) * (ONE - amount);
        for (int c = 0; c < 3; c++) planes[c * count + k] = clip((grey + amount * planes[c * count + k]) >> 16);
    }
}

/* How much of the chroma a channel lacks whose peak is two sectors from `position`. */
static int32_t lacking(int32_t chroma, int32_t position) {
    const int32_t within = position >= CIRCLE ? position - CIRCLE : position;
    return (chroma * min(max(min(within, 4 * SECTOR - within), 0), SECTOR) + SECTOR / 2) >> 20;
}

static void turn_hue(uint8_t *restrict planes, int count, int32_t turn) {
    for (int k = 0; k < count; k++) {
        const int32_t r = planes[k], g = planes[count + k], b = planes[2 * count + k];
        const int32_t largest = max(r, max(g, b)), chroma = largest - min(r, min(g, b)), some = max(chroma, 1);
        /* rounds down to the integers' quotient, see datasets/cpu.py */
        const int32_t step = (int32_t)((float)(SECTOR + (some >> 1)) / (float)some);
        const int32_t base = largest == r ? 0 : largest == g ? 2 * SECTOR : 4 * SECTOR;
        int32_t hue = (largest == r ? g - b : largest == g ? b - r : r - g) * step + base + turn + CIRCLE;
        hue = hue >= CIRCLE ? hue - CIRCLE : hue;
        hue = hue >= CIRCLE ? hue - CIRCLE : hue;
        planes[k] = (uint8_t)(largest - lacking(chroma, hue + 5 * SECTOR));
        planes[count + k] = (uint8_t)(largest - lacking(chroma, hue + 3 * SECTOR));
        planes[2 * count + k] = (uint8_t)(largest - lacking(chroma, hue + SECTOR));
    }
}

static void jitter(const Plan *p, int64_t i, uint8_t *planes) {
    const int count = (int)(p->size * p->size);
    for (int k = 0; k < 4; k++) {
        const int operation = p->order[4 * i + k];
        const int32_t amount = p->jitter[4 * i + operation];
        if (amount == (operation == HUE ? 0 : ONE)) continue;
        if (operation == HUE) turn_hue(planes, count, amount);
        else if (operation == SATURATION) saturate(planes, count, amount);
        else blend_with(planes, count, operation == BRIGHTNESS ? 0 : mean_grey(planes, count), amount);
    }
}

static void turn_about(const Plan *p, int64_t i, uint8_t *restrict planes, uint8_t *restrict scratch) {
    const int size = (int)p->size, count = size * size;
    const int32_t *turn = p->turn + 4 * i, cos = turn[0], sin = turn[1];
    if (cos == ONE && sin == 0) return;
    memcpy(scratch, planes, 3 * count);
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++) {
            const int32_t from_x = (turn[2] - sin * y + cos * x) >> 16, from_y = (turn[3] + cos * y + sin * x) >> 16;
            const int there = 0 <= from_y && from_y < size && 0 <= from_x && from_x < size;
            for (int c = 0; c < 3; c++)
                planes[c * count + y * size + x] = there ? scratch[c * count + from_y * size + from_x] : 0;
        }
}

static float value(const Plan *p, const uint8_t *planes, int64_t i, int c, int y, int x) {
    if (inside(p->erase + 4 * i, y, x)) return 0;
    return planes[(c * p->size + y) * p->size + x] * p->scale[c] + p->bias[c];
}

/* Normalises planes, and weighs them with another's where weight is below 1. */
static void normalise(const Plan *p, const uint8_t *restrict own, const uint8_t *restrict other, float weight,
                      float *restrict out) {
    const int count = (int)(p->size * p->size);
    const float rest = 1 - weight;
    for (int c = 0; c < 3; c++) {
        const uint8_t *restrict a = own + c * count, *restrict b = other + c * count;
        const float scale = p->scale[c], bias = p->bias[c];
        float *restrict to = out + c * count;
        if (weight < 1)
            for (int k = 0; k < count; k++)
                to[k] = weight * (a[k] * scale + bias) + rest * (b[k] * scale + bias);
        else
            for (int k = 0; k < count; k++) to[k] = a[k] * scale + bias;
    }
}

/* Does the pixels of a box of the output again, one by one, erasing them where that was told. */
static void mend(const Plan *p, const uint8_t *own, const uint8_t *other, int64_t i, const int16_t *box, float *out) {
    const int size = (int)p->size, j = p->partner[i];
    const float weight = p->blend[i], rest = 1 - weight;
    for (int c = 0; c < 3; c++)
        for (int y = box[0]; y < box[2]; y++)
            for (int x = box[1]; x < box[3]; x++) {
                float *to = out + (c * size + y) * size + x;
                if (weight < 1) *to = weight * value(p, own, i, c, y, x) + rest * value(p, other, j, c, y, x);
                else if (inside(p->box + 4 * i, y, x)) *to = value(p, other, j, c, y, x);
                else *to = value(p, own, i, c, y, x);
            }
}

/* seen: [B + 1, 3, S, S] bytes to work in; out: [B, 3, S, S]. */
void apply_plan(const Plan *p, uint8_t *seen, float *out) {
    const int64_t image = 3 * p->size * p->size;
    uint8_t *scratch = seen + p->num * image;
    for (int64_t i = 0; i < p->num; i++) {
        cut(p, i, seen + i * image, scratch);
        jitter(p, i, seen + i * image);
        turn_about(p, i, seen + i * image, scratch);
    }
    for (int64_t i = 0; i < p->num; i++) {
        const int64_t j = p->partner[i];
        const uint8_t *own = seen + i * image, *other = seen + j * image, *shown = own;
        const int16_t *box = p->box + 4 * i;
        float *to = out + i * image;
        if (p->blend[i] == 1 && box[0] < box[2] && box[1] < box[3]) {
            memcpy(scratch, own, image);
            for (int64_t line = 0; line < 3 * p->size; line++)
                if (box[0] <= line % p->size && line % p->size < box[2])
                    memcpy(scratch + line * p->size + box[1], other + line * p->size + box[1], box[3] - box[1]);
            shown = scratch;
        }
        normalise(p, shown, other, p->blend[i], to);
        mend(p, own, other, i, p->erase + 4 * i, to);
        if (j != i) mend(p, own, other, i, p->erase + 4 * j, to);
    }
}
