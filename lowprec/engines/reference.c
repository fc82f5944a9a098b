/* @title@
 *
 * sum(a * b) + c of one matrix engine, in integers alone: no floating point, no library but C's own.
 * Reads test vectors on stdin, as `lowprec vectors` writes them, and prints every line whose result
 * is another. Exit status: 0 all equal, 1 mismatches, 2 a line that cannot be read.
 *
 *   cc -std=c99 -O2 -o reference FILE.c && ./reference < VECTORS.hex
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FINITE, INFINITE, NAN_KIND };
enum { SPECIALS_NONE, SPECIALS_IEEE, SPECIALS_LAST, SPECIALS_ALL_ONES, SPECIALS_NEGATIVE_ZERO };
enum { EARLY, LAST, SEPARATE };
enum {
  NEAREST_EVEN, NEAREST_AWAY, NEAREST_TOWARD_ZERO,
  TOWARD_ZERO, TOWARD_POSITIVE, TOWARD_NEGATIVE, TO_ODD
};

/* A number format; `lowest` is the exponent that its subnormals are read with. */
typedef struct {
  const char *name;
  int is_signed, exponent_bits, mantissa_bits, bias, infinity, nan, subnormals, lowest;
} Format;

/* @entry@ */

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))
#define MAX_K 32768
#define LINE_LENGTH (1 << 20)

/* significand * 2^exponent with a sign, which zero has too; or Inf or NaN. */
typedef struct {
  int kind, negative;
  uint64_t significand;
  int exponent;
} Number;

static int bit_length(uint64_t x) {
  int length = 0;
  for (; x; x >>= 1) length++;
  return length;
}

static int is_zero(Number x) { return x.kind == FINITE && x.significand == 0; }

/* floor(log2 |x|), or `lowest` where it lies below: what the exponent field says. */
static int field_exponent(Number x, int lowest) {
  int binade = bit_length(x.significand) - 1 + x.exponent;
  return binade > lowest ? binade : lowest;
}

/* Wide: a fixed-point number that holds every sum exactly; bit 0 is worth 2^LOWEST_BIT. */

#define LIMBS 64
#define LOWEST_BIT (-1024)

typedef struct {
  uint32_t limb[LIMBS]; /* two's complement, the lowest first */
} Wide;

static const Wide WIDE_ZERO = {{0}};

static int wide_bit(const Wide *x, int place) {
  place -= LOWEST_BIT;
  return x->limb[place / 32] >> (place % 32) & 1;
}

static int wide_is_negative(const Wide *x) { return x->limb[LIMBS - 1] >> 31; }

static int wide_is_zero(const Wide *x) {
  for (int i = 0; i < LIMBS; i++)
    if (x->limb[i]) return 0;
  return 1;
}

static void wide_add(Wide *x, const Wide *y) {
  uint64_t carry = 0;
  for (int i = 0; i < LIMBS; i++) {
    carry += (uint64_t)x->limb[i] + y->limb[i];
    x->limb[i] = (uint32_t)carry;
    carry >>= 32;
  }
}

/* Adds one bit of that place. */
static void wide_add_bit(Wide *x, int place) {
  Wide one = WIDE_ZERO;
  place -= LOWEST_BIT;
  one.limb[place / 32] = (uint32_t)1 << (place % 32);
  wide_add(x, &one);
}

static void wide_negate(Wide *x) {
  for (int i = 0; i < LIMBS; i++) x->limb[i] = ~x->limb[i];
  wide_add_bit(x, LOWEST_BIT);
}

static void wide_multiply(Wide *x, uint32_t factor) {
  uint64_t carry = 0;
  for (int i = 0; i < LIMBS; i++) {
    carry += (uint64_t)x->limb[i] * factor;
    x->limb[i] = (uint32_t)carry;
    carry >>= 32;
  }
}

static Wide wide(int negative, uint64_t significand, int exponent) {
  Wide out = WIDE_ZERO;
  int place = exponent - LOWEST_BIT, shift = place % 32;
  uint64_t middle = significand << shift;
  uint32_t top = shift ? (uint32_t)(significand >> 32 >> (32 - shift)) : 0;
  out.limb[place / 32] = (uint32_t)middle;
  out.limb[place / 32 + 1] = (uint32_t)(middle >> 32);
  out.limb[place / 32 + 2] = top;
  if (negative) wide_negate(&out);
  return out;
}

/* Whether a magnitude between two neighbours goes to the one away from zero. */
static int goes_away(int rounding, int negative, int odd, int half, int below_half) {
  int inexact = half || below_half;
  switch (rounding) {
    case NEAREST_EVEN: return half && (below_half || odd);
    case NEAREST_AWAY: return half;
    case NEAREST_TOWARD_ZERO: return half && below_half;
    case TOWARD_POSITIVE: return inexact && !negative;
    case TOWARD_NEGATIVE: return inexact && negative;
    case TO_ODD: return inexact && !odd;
    default: return 0; /* TOWARD_ZERO */
  }
}

/* The bits below a place: whether any is set, and clearing them. */
static int wide_any_below(const Wide *x, int place) {
  uint32_t any = 0;
  place -= LOWEST_BIT;
  for (int i = 0; i < place / 32; i++) any |= x->limb[i];
  return (any | (x->limb[place / 32] & (((uint32_t)1 << (place % 32)) - 1))) != 0;
}

static void wide_clear_below(Wide *x, int place) {
  place -= LOWEST_BIT;
  for (int i = 0; i < place / 32; i++) x->limb[i] = 0;
  x->limb[place / 32] &= ~(((uint32_t)1 << (place % 32)) - 1);
}

/* Rounds to a multiple of 2^unit. */
static void wide_round(Wide *x, int unit, int rounding) {
  int negative = wide_is_negative(x), odd, half, away;
  if (negative) wide_negate(x);
  odd = wide_bit(x, unit);
  half = wide_bit(x, unit - 1);
  away = goes_away(rounding, negative, odd, half, wide_any_below(x, unit - 1));
  wide_clear_below(x, unit);
  if (away) wide_add_bit(x, unit);
  if (negative) wide_negate(x);
}

/* floor(log2 |x|) of what is not zero. */
static int wide_binade(Wide x) {
  int place = LOWEST_BIT + 32 * LIMBS - 1;
  if (wide_is_negative(&x)) wide_negate(&x);
  while (!wide_bit(&x, place)) place--;
  return place;
}

/* The number in a format: rounded once, with subnormals; overflow is Inf in every mode. */
static Number wide_to_format(Wide x, const Format *format, int rounding) {
  Number out = {FINITE, wide_is_negative(&x), 0, 0};
  int binade = wide_binade(x), beyond = (1 << format->exponent_bits) - 1 - format->bias;
  out.exponent = (binade > format->lowest ? binade : format->lowest) - format->mantissa_bits;
  wide_round(&x, out.exponent, rounding);
  if (out.negative) wide_negate(&x);
  for (int i = format->mantissa_bits + 1; i >= 0; i--)
    out.significand = out.significand << 1 | (uint64_t)wide_bit(&x, out.exponent + i);
  if (out.significand && bit_length(out.significand) - 1 + out.exponent >= beyond)
    out.kind = INFINITE;
  return out;
}

/* Codes */

static Number decode(uint32_t code, const Format *format) {
  Number out = {FINITE, 0, 0, 0};
  int width = format->exponent_bits + format->mantissa_bits;
  uint32_t ones = (uint32_t)(((uint64_t)1 << width) - 1), magnitude = code & ones;
  uint32_t mantissa = magnitude & (((uint32_t)1 << format->mantissa_bits) - 1);
  int field = (int)(magnitude >> format->mantissa_bits);
  out.negative = format->is_signed && (code >> width & 1);
  if (format->nan == SPECIALS_NEGATIVE_ZERO && out.negative && !magnitude) out.kind = NAN_KIND;
  if (format->infinity == SPECIALS_IEEE && field == (1 << format->exponent_bits) - 1)
    out.kind = mantissa ? NAN_KIND : INFINITE;
  if (format->infinity == SPECIALS_LAST && magnitude == ones - (format->nan == SPECIALS_ALL_ONES))
    out.kind = INFINITE;
  if (format->nan == SPECIALS_ALL_ONES && magnitude == ones) out.kind = NAN_KIND;
  if (out.kind != FINITE) return out;
  if (format->subnormals && field == 0) field = 1;
  else mantissa |= (uint32_t)1 << format->mantissa_bits;
  out.significand = mantissa;
  out.exponent = field - format->bias - format->mantissa_bits;
  return out;
}

/* The output's code; the number is one of the output's. */
static uint32_t encode(Number x) {
  int width = OUTPUT.exponent_bits + OUTPUT.mantissa_bits, unit, field;
  uint32_t sign = (uint32_t)(x.negative != 0) << width, significand;
  uint32_t infinity = (((uint32_t)1 << OUTPUT.exponent_bits) - 1) << OUTPUT.mantissa_bits;
  if (x.kind == NAN_KIND)
    return NAN_ALL_ONES ? ((uint32_t)1 << width) - 1
                        : infinity | (uint32_t)1 << (OUTPUT.mantissa_bits - 1);
  if (x.kind == INFINITE) return sign | infinity;
  if (!x.significand) return sign;
  unit = field_exponent(x, OUTPUT.lowest) - OUTPUT.mantissa_bits;
  significand = (uint32_t)(x.exponent >= unit ? x.significand << (x.exponent - unit)
                                              : x.significand >> (unit - x.exponent));
  field = unit + OUTPUT.mantissa_bits + OUTPUT.bias;
  if (!(significand >> OUTPUT.mantissa_bits)) field = 0;
  return sign | (uint32_t)field << OUTPUT.mantissa_bits |
         (significand & (((uint32_t)1 << OUTPUT.mantissa_bits) - 1));
}

/* What a step adds: a value, and the exponent it is aligned by, where it counts. */
typedef struct {
  int kind, negative; /* `negative` of Inf */
  Wide value;
  int counts, exponent;
} Term;

static const Term TERM_ZERO = {FINITE, 0, {{0}}, 0, 0};

/* The kind of a product: NaN of a NaN and of Inf * 0. */
static int kind_of_product(int x, int x_is_zero, int y, int y_is_zero) {
  if (x == NAN_KIND || y == NAN_KIND) return NAN_KIND;
  if (x == INFINITE) return y_is_zero ? NAN_KIND : INFINITE;
  if (y == INFINITE) return x_is_zero ? NAN_KIND : INFINITE;
  return FINITE;
}

static Term product(Number a, Number b, int a_lowest, int b_lowest) {
  Term out = TERM_ZERO;
  out.kind = kind_of_product(a.kind, is_zero(a), b.kind, is_zero(b));
  out.negative = a.negative != b.negative;
  if (out.kind != FINITE) return out;
  out.value = wide(out.negative, a.significand * b.significand, a.exponent + b.exponent);
  out.counts = a.significand && b.significand;
  if (out.counts) out.exponent = field_exponent(a, a_lowest) + field_exponent(b, b_lowest);
  return out;
}

/* A term times a scale, whose sign does not count. */
static Term scaled(Term x, Number scale, int lowest) {
  int zero = x.kind == FINITE && wide_is_zero(&x.value);
  x.kind = kind_of_product(x.kind, zero, scale.kind, is_zero(scale));
  if (x.kind != FINITE) return x;
  wide_multiply(&x.value, (uint32_t)scale.significand);
  /* A shift by the scale's exponent, which is far from both ends. */
  Wide shifted = WIDE_ZERO;
  for (int i = 0; i < LIMBS; i++) {
    int place = 32 * i + scale.exponent, limb = (place + 32 * LIMBS) / 32 - LIMBS;
    int shift = (place + 32 * LIMBS) % 32;
    uint64_t bits = (uint64_t)x.value.limb[i] << shift;
    if (limb >= 0 && limb < LIMBS) shifted.limb[limb] |= (uint32_t)bits;
    if (limb >= -1 && limb < LIMBS - 1) shifted.limb[limb + 1] |= (uint32_t)(bits >> 32);
  }
  if (wide_is_negative(&x.value) && scale.exponent < 0)
    for (int i = 32 * LIMBS + scale.exponent; i < 32 * LIMBS; i++)
      shifted.limb[i / 32] |= (uint32_t)1 << (i % 32);
  x.value = shifted;
  x.counts = x.counts && scale.significand;
  if (x.counts) x.exponent += field_exponent(scale, lowest);
  return x;
}

/* The kind of a sum, and the sign of its Inf: Inf - Inf is NaN. */
static int kind_of_sum(const Term *terms, int count, int *negative) {
  int plus = 0, minus = 0;
  for (int i = 0; i < count; i++) {
    if (terms[i].kind == NAN_KIND) return NAN_KIND;
    if (terms[i].kind == INFINITE && terms[i].negative) minus = 1;
    if (terms[i].kind == INFINITE && !terms[i].negative) plus = 1;
  }
  *negative = minus;
  return plus && minus ? NAN_KIND : plus || minus ? INFINITE : FINITE;
}

/* The exact sum of a group, which has the exponents of its scales alone. */
static Term group_sum(const Term *terms, int count) {
  Term out = TERM_ZERO;
  out.kind = kind_of_sum(terms, count, &out.negative);
  for (int i = 0; i < count; i++) {
    wide_add(&out.value, &terms[i].value);
    out.counts |= terms[i].counts;
  }
  if (out.kind == FINITE) out.negative = wide_is_negative(&out.value);
  return out;
}

static Term term_of(Number c) {
  Term out = TERM_ZERO;
  out.kind = c.kind;
  out.negative = c.negative;
  out.counts = c.kind == FINITE && c.significand;
  if (c.kind == FINITE) out.value = wide(c.negative, c.significand, c.exponent);
  if (out.counts) out.exponent = field_exponent(c, OUTPUT.lowest);
  return out;
}

/* Terms and c aligned to the largest exponent, cut, added exactly and rounded once. */
static Number step(const Term *terms, int count, Number c) {
  Term all[FUSED_TERMS + 1];
  Number out = {FINITE, 0, 0, 0};
  Wide total = WIDE_ZERO;
  int top = 0, any = 0, aligned = ACCUMULATOR == LAST ? count : count + 1;
  for (int i = 0; i < count; i++) all[i] = terms[i];
  all[count] = term_of(c);
  out.kind = kind_of_sum(all, count + 1, &out.negative);
  if (out.kind != FINITE) return out;
  for (int i = 0; i < aligned; i++)
    if (all[i].counts && (!any++ || all[i].exponent > top)) top = all[i].exponent;
  if (HAS_MIN_EXPONENT && (!any || top < MIN_EXPONENT)) top = MIN_EXPONENT;
  for (int i = 0; i <= count; i++) {
    if (i < aligned && !EXACT) wide_round(&all[i].value, top - FRACTION_BITS, ALIGNMENT_ROUNDING);
    wide_add(&total, &all[i].value);
  }
  if (wide_is_zero(&total)) return out;
  out = wide_to_format(total, &REGISTER, OUTPUT_ROUNDING);
  if (!KEEPS_ZERO_SIGN && is_zero(out)) out.negative = 0;
  return out;
}

/* c added in an operation of its own, to nearest even. */
static Number add_separately(Number x, Number c) {
  Term both[2];
  Number out = {FINITE, 0, 0, 0};
  both[0] = term_of(x);
  both[1] = term_of(c);
  out.kind = kind_of_sum(both, 2, &out.negative);
  if (out.kind != FINITE) return out;
  wide_add(&both[0].value, &both[1].value);
  out.negative = x.negative && c.negative;
  if (wide_is_zero(&both[0].value)) return out;
  return wide_to_format(both[0].value, &OUTPUT, NEAREST_EVEN);
}

/* One dot product */

typedef struct {
  const Format *a, *b, *scale;
  int k;
} Columns;

static uint32_t cut(uint32_t code, const Format *format) {
  if (INPUT_MANTISSA_BITS < 0) return code;
  return code & ~(((uint32_t)1 << (format->mantissa_bits - INPUT_MANTISSA_BITS)) - 1);
}

static Number scale_of(uint32_t code, const Format *format) {
  Number out = decode(code, format);
  out.negative = 0;
  return out;
}

static int scale_count(int k) { return SCALE_BLOCK ? (k + SCALE_BLOCK - 1) / SCALE_BLOCK : 0; }

static Term with_scales(Term x, const uint32_t *alphas, int k, const Columns *columns) {
  if (!SCALE_BLOCK) return x;
  const uint32_t *betas = alphas + scale_count(columns->k);
  const Format *format = columns->scale;
  int at = k / (SCALE_BLOCK ? SCALE_BLOCK : 1);
  Number alpha = scale_of(alphas[at], format), beta = scale_of(betas[at], format);
  return scaled(scaled(x, alpha, format->lowest), beta, format->lowest);
}

/* The k of one instruction: the terms of its steps, then the steps in turn, then c. */
static Number instruction(const uint32_t *code, const Columns *columns, int first, int count,
                          Number c) {
  static Term terms[FUSED_TERMS * INTERLEAVE], dealt[FUSED_TERMS];
  const uint32_t *a = code, *b = code + columns->k, *scales = code + 2 * columns->k;
  int a_lowest = HAS_THROUGH ? THROUGH_LOWEST : columns->a->lowest;
  int b_lowest = HAS_THROUGH ? THROUGH_LOWEST : columns->b->lowest, made = 0;
  Number total = c;
  for (int k = 0; k < count; k++) {
    Number x = decode(cut(a[first + k], columns->a), columns->a);
    Number y = decode(cut(b[first + k], columns->b), columns->b);
    terms[k] = product(x, y, a_lowest, b_lowest);
    if (!GROUP) terms[k] = with_scales(terms[k], scales, first + k, columns);
  }
  for (int k = 0; GROUP && k < count; k += GROUP) {
    Term sum = group_sum(terms + k, count - k < GROUP ? count - k : GROUP);
    terms[made++] = with_scales(sum, scales, first + k, columns);
  }
  if (GROUP) count = made;
  if (ACCUMULATOR == SEPARATE) total = decode(0, &OUTPUT);
  for (int place = 0; place < INTERLEAVE; place++) {
    int size = 0;
    for (int k = 0; k < count; k++)
      if (k / 2 % INTERLEAVE == place) dealt[size++] = terms[k];
    total = step(dealt, size, total);
  }
  return ACCUMULATOR == SEPARATE ? add_separately(total, c) : total;
}

static uint32_t dot(const uint32_t *code, const Columns *columns) {
  int length = FUSED_LENGTH ? FUSED_LENGTH * INTERLEAVE : columns->k;
  uint32_t c_code = code[2 * columns->k + 2 * scale_count(columns->k)];
  Number total = decode(c_code, &OUTPUT);
  for (int k = 0; k < columns->k; k += length) {
    int left = columns->k - k;
    total = instruction(code, columns, k, left < length ? left : length, total);
  }
  return encode(total);
}

/* Test vectors */

static const Format *find_format(const char *name) {
  for (int i = 0; i < COUNT(FORMATS); i++)
    if (!strcmp(FORMATS[i].name, name)) return &FORMATS[i];
  fprintf(stderr, "format %s is none of this engine's\n", name);
  exit(2);
}

static void read_header(const char *line, Columns *columns) {
  char name[64];
  if (sscanf(line, "# a_format = %63s", name) == 1) columns->a = find_format(name);
  if (sscanf(line, "# b_format = %63s", name) == 1) columns->b = find_format(name);
  if (sscanf(line, "# scale_format = %63s", name) == 1) columns->scale = find_format(name);
  if (sscanf(line, "# k = %d", &columns->k) == 1 && (columns->k < 1 || columns->k > LONGEST_K)) {
    fprintf(stderr, "k = %d; from 1 to %d\n", columns->k, LONGEST_K);
    exit(2);
  }
}

static int split(char *line, uint32_t *codes, int most) {
  int count = 0;
  for (char *word = strtok(line, " \t\r\n"); word; word = strtok(NULL, " \t\r\n")) {
    char *end;
    if (count == most) return -1;
    codes[count++] = (uint32_t)strtoul(word, &end, 16);
    if (*end) return -1;
  }
  return count;
}

int main(void) {
  static char line[LINE_LENGTH];
  static uint32_t codes[4 * MAX_K + 2];
  Columns columns = {NULL, NULL, NULL, 0};
  long number = 0, checked = 0, wrong = 0;
  while (fgets(line, LINE_LENGTH, stdin)) {
    number++;
    read_header(line, &columns);
    if (line[0] == '#' || line[0] == '\n') continue;
    if (!columns.a || !columns.b || !columns.k || (SCALE_BLOCK && !columns.scale)) {
      fprintf(stderr, "line %ld: a header must name a_format, b_format and k before it\n", number);
      return 2;
    }
    int wanted = 2 * columns.k + 2 * scale_count(columns.k) + 2;
    if (split(line, codes, wanted) != wanted) {
      fprintf(stderr, "line %ld: not %d hexadecimal numbers\n", number, wanted);
      return 2;
    }
    uint32_t got = dot(codes, &columns), want = codes[wanted - 1];
    checked++;
    if (got == want) continue;
    wrong++;
    printf("line %ld: got %0*x, want %0*x\n", number, DIGITS, got, DIGITS, want);
  }
  printf("%s: %ld checked, %ld mismatches\n", ENGINE, checked, wrong);
  return wrong ? 1 : checked ? 0 : 2;
}
